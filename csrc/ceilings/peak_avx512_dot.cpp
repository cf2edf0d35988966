#include <immintrin.h>

#include "peak_loop.h"

namespace ktd {
namespace {

constexpr int kChains = 24;  // vdpbf16ps: latency 12 on Intel's, one or two units

void RunBf16(std::uint64_t rounds) noexcept {
  const __m512i left = _mm512_set1_epi16(0x3f40);   // 0.75
  const __m512i right = _mm512_set1_epi16(0x3a83);  // 1e-3
  RunChains<kChains>(_mm512_castps_si512(_mm512_set1_ps(1.0f)), left, right, rounds,
                     [](__m512i sum, __m512i a, __m512i b) {
                       return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum),
                                                                   reinterpret_cast<__m512bh>(a),
                                                                   reinterpret_cast<__m512bh>(b)));
                     });
}

void RunInt8(std::uint64_t rounds) noexcept {
  RunChains<kChains>(_mm512_set1_epi32(1), _mm512_set1_epi8(93), _mm512_set1_epi8(-77), rounds,
                     [](__m512i sum, __m512i left, __m512i right) {
                       return _mm512_dpbusd_epi32(sum, left, right);
                     });
}

}  // namespace

const PeakLoop kPeakAvx512Bf16{"avx512_bf16", kAvx512F | kAvx512Bf16, kChains * 32 * 2.0, 2000,
                               &RunBf16};
const PeakLoop kPeakAvx512Int8{"avx512_vnni_int8", kAvx512F | kAvx512Vnni, kChains * 64 * 2.0, 2000,
                               &RunInt8};

}  // namespace ktd
