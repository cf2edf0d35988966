// AVX512 F, BW, VL and DQ.
#include "avx512_math.h"
#include "bf16_row.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Avx512 {
  using Acc = __m512;
  using Wide = Pairs;
  static constexpr std::size_t kStep = 32;
  static constexpr int kRowsOne = 4;
  static constexpr int kRowsMany = 4;
  static constexpr int kTokens = 4;  // 4 rows x 4 tokens: 16 of 32 registers, 8 for x, 2 for w
  static constexpr bool kPrefetchFar = false;

  static Acc Zero() noexcept { return _mm512_setzero_ps(); }
  static Wide Load(const Bf16* p) noexcept { return LoadPairs(p); }
  static Wide LoadTail(const Bf16* p, std::size_t n) noexcept { return LoadPairs(p, n); }
  static Acc Madd(Acc acc, const Wide& w, const Wide& x) noexcept {
    return _mm512_fmadd_ps(w.odd, x.odd, _mm512_fmadd_ps(w.even, x.even, acc));
  }
  static float Sum(Acc acc) noexcept { return SumSixteen(acc); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateMasked(activation, gate, up, n, act);
  }
};

struct Avx512Panels {
  using Vec = Avx512Vec;
  static constexpr std::size_t kUnit = 8;
  static constexpr int kPanelRows = 4;
  static constexpr std::size_t kPanelStep = 32;
  static constexpr std::size_t kInputBytes = sizeof(Bf16);
  static constexpr int kPanelTokens = 6;

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
    ActivateMasked(activation, gate, up, n, act);
  }
};

}  // namespace

const ExpertKernel kBf16Avx512 = GemvKernel<Bf16Rows<Avx512>>();

const ExpertKernel kBf16Avx512Many = GemvKernel<Avx512Panels>();

}  // namespace ktd
