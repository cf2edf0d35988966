// AVX512-BF16: vdpbf16ps multiplies 32 pairs a step. It takes denormal inputs as zero and flushes
// denormal sums, whatever MXCSR says; the products themselves are exact.
#include "avx512_math.h"
#include "bf16_row.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Avx512Bf16 {
  using Acc = __m512;
  using Wide = __m512i;
  static constexpr std::size_t kStep = 32;
  static constexpr int kRowsOne =
      2;  // 120 GB/s on a 16-core Xeon, where 1, 4 and 8 gave 114, 116, 102
  static constexpr int kRowsMany = 4;
  static constexpr int kTokens = 4;  // 4 rows x 4 tokens: 16 of 32 registers, 4 for x, 1 for w
  static constexpr bool kPrefetchFar = false;

  static Acc Zero() noexcept { return _mm512_setzero_ps(); }
  static Wide Load(const Bf16* p) noexcept { return _mm512_loadu_si512(p); }
  static Wide LoadTail(const Bf16* p, std::size_t n) noexcept {
    return _mm512_maskz_loadu_epi16(First32(n), p);
  }
  static Acc Madd(Acc acc, const Wide& w, const Wide& x) noexcept {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  static float Sum(Acc acc) noexcept { return SumSixteen(acc); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateMasked(activation, gate, up, n, act);
  }
};

}  // namespace

const ExpertKernel kBf16Avx512Bf16 = GemvKernel<Bf16Rows<Avx512Bf16>>();

}  // namespace ktd
