#include <immintrin.h>

#include "peak_loop.h"

namespace ktd {
namespace {

constexpr int kChains = 24;

void RunF32(std::uint64_t rounds) noexcept {
  RunChains<kChains>(
      _mm512_set1_ps(1.0f), _mm512_set1_ps(0.75f), _mm512_set1_ps(1e-3f), rounds,
      [](__m512 sum, __m512 left, __m512 right) { return _mm512_fmadd_ps(left, right, sum); });
}

void RunInt16(std::uint64_t rounds) noexcept {
  RunChains<kChains>(_mm512_set1_epi32(1), _mm512_set1_epi16(93), _mm512_set1_epi16(-77), rounds,
                     [](__m512i sum, __m512i left, __m512i right) {
                       return _mm512_add_epi32(sum, _mm512_madd_epi16(left, right));
                     });
}

}  // namespace

const PeakLoop kPeakAvx512F32{"avx512_f32", kAvx512F, kChains * 16 * 2.0, 2000, &RunF32};
const PeakLoop kPeakAvx512Int16{"avx512_int16", kAvx512F | kAvx512Bw, kChains * 32 * 2.0, 2000,
                                &RunInt16};

}  // namespace ktd
