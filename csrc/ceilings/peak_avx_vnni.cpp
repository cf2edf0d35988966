#include <immintrin.h>

#include "peak_loop.h"

namespace ktd {
namespace {

constexpr int kChains = 12;  // latency 5, 2 units

void Run(std::uint64_t rounds) noexcept {
  RunChains<kChains>(_mm256_set1_epi32(1), _mm256_set1_epi8(93), _mm256_set1_epi8(-77), rounds,
                     [](__m256i sum, __m256i left, __m256i right) {
                       return _mm256_dpbusd_avx_epi32(sum, left, right);
                     });
}

}  // namespace

const PeakLoop kPeakAvxVnniInt8{"avx_vnni_int8", kAvx2 | kAvxVnni, kChains * 32 * 2.0, 4000, &Run};

}  // namespace ktd
