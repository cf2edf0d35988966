// AVX2 + FMA.
#include "avx2_math.h"
#include "bf16_row.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Avx2 {
  using Acc = __m256;
  using Wide = Pairs;
  static constexpr std::size_t kStep = 16;
  static constexpr int kRowsOne = 4;
  static constexpr int kRowsMany = 4;
  static constexpr int kTokens = 2;  // 4 rows x 2 tokens: 8 of 16 registers, 4 for x, 2 for w
  // On one Zen 5 core, of 43 GB/s: 38 into L2, 33 into L1. A line is asked for twice, by each of
  // its two steps; asked for once, it was 32 either way.
  static constexpr bool kPrefetchFar = true;

  static Acc Zero() noexcept { return _mm256_setzero_ps(); }
  static Wide Load(const Bf16* p) noexcept { return LoadPairs(p); }
  static Wide LoadTail(const Bf16* p, std::size_t n) noexcept { return LoadPairs(p, n); }
  static Acc Madd(Acc acc, const Wide& w, const Wide& x) noexcept {
    return _mm256_fmadd_ps(w.odd, x.odd, _mm256_fmadd_ps(w.even, x.even, acc));
  }
  static float Sum(Acc acc) noexcept { return SumEight(acc); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateAll(activation, gate, up, n, act);
  }
};

struct Avx2Panels {
  using Vec = Avx2Vec;
  static constexpr std::size_t kUnit = 8;
  static constexpr int kPanelRows = 4;
  static constexpr std::size_t kPanelStep = 16;
  static constexpr std::size_t kInputBytes = sizeof(Bf16);
  static constexpr int kPanelTokens = 3;

  static constexpr std::size_t PackedBytes(std::size_t columns) noexcept {
    return PanelBytes(columns);
  }
  static void Pack(const Matrix& m, const Bf16* x, std::uint8_t* packed) noexcept {
    WidenAll(x, m.columns, reinterpret_cast<float*>(packed));
  }
  static void Fill(const Matrix& m, std::size_t row, std::size_t first, std::size_t n,
                   float* to) noexcept {
    WidenAll(reinterpret_cast<const Bf16*>(m.weights + row * m.pitch) + first, n, to);
  }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateAll(activation, gate, up, n, act);
  }
};

}  // namespace

const ExpertKernel kBf16Avx2 = GemvKernel<Bf16Rows<Avx2>>();

const ExpertKernel kBf16Avx2Many = GemvKernel<Avx2Panels>();

}  // namespace ktd
