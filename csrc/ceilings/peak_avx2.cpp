#include <immintrin.h>

#include "peak_loop.h"

namespace ktd {
namespace {

constexpr int kChains = 12;  // latency 4 or 5, 2 units

void RunF32(std::uint64_t rounds) noexcept {
  RunChains<kChains>(
      _mm256_set1_ps(1.0f), _mm256_set1_ps(0.75f), _mm256_set1_ps(1e-3f), rounds,
      [](__m256 sum, __m256 left, __m256 right) { return _mm256_fmadd_ps(left, right, sum); });
}

// What an exact product of int8 takes without VNNI: vpmaddubsw would saturate.
void RunInt16(std::uint64_t rounds) noexcept {
  RunChains<kChains>(_mm256_set1_epi32(1), _mm256_set1_epi16(93), _mm256_set1_epi16(-77), rounds,
                     [](__m256i sum, __m256i left, __m256i right) {
                       return _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));
                     });
}

}  // namespace

const PeakLoop kPeakAvx2F32{"avx2_f32", kAvx2 | kFma, kChains * 8 * 2.0, 4000, &RunF32};
const PeakLoop kPeakAvx2Int16{"avx2_int16", kAvx2, kChains * 16 * 2.0, 4000, &RunInt16};

}  // namespace ktd
