#include <emmintrin.h>

#include "peak_loop.h"

namespace ktd {
namespace {

constexpr int kChains = 12;  // multiply and add: latency 4 + 4 at most, 2 units at most

void Run(std::uint64_t rounds) noexcept {
  RunChains<kChains>(_mm_set1_ps(1.0f), _mm_set1_ps(0.75f), _mm_set1_ps(1e-3f), rounds,
                     [](__m128 sum, __m128 left, __m128 right) {
                       return _mm_add_ps(sum, _mm_mul_ps(left, right));
                     });
}

}  // namespace

const PeakLoop kPeakSse2F32{"sse2_f32", 0, kChains * 4 * 2.0, 4000, &Run};

}  // namespace ktd
