// What the AVX512 kernels share: SiLU, rounding to bf16, masked ends. For files compiled with
// F, BW, VL and DQ; internal linkage (see bf16.h).
#pragma once

#include <immintrin.h>

#include "moe_job.h"

namespace ktd {
namespace {

inline __mmask32 First32(std::size_t n) noexcept {
  return static_cast<__mmask32>((std::uint64_t{1} << n) - 1);
}

// e^x. Range reduction and polynomial of Cephes expf (relative error 2e-7). Both clamps keep NaN;
// vscalefps overflows to infinity and underflows gradually, as it should.
inline __m512 Exp(__m512 x) noexcept {
  x = _mm512_min_ps(_mm512_set1_ps(104.0f), x);
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// Narrow() of bf16.h, sixteen at a time, in the lower half of each lane. Not vcvtneps2bf16, which
// flushes denormals: the second product then starts from the same values on every ISA.
inline __m512i NarrowSixteen(__m512 value) noexcept {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd);
  return _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
}

inline void SiluMulMasked(const float* gate, const float* up, Bf16* act, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; i += 16) {
    const std::size_t left = n - i < 16 ? n - i : 16;
    const __mmask16 mask = static_cast<__mmask16>((1u << left) - 1u);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
    const __m512 u = _mm512_maskz_loadu_ps(mask, up + i);
    const __m512 e = Exp(_mm512_xor_ps(g, _mm512_set1_ps(-0.0f)));
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
    _mm512_mask_cvtepi32_storeu_epi16(act + i, mask, NarrowSixteen(_mm512_mul_ps(silu, u)));
  }
}

// The order of these additions is part of a kernel's result.
inline float SumSixteen(__m512 v) noexcept {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

}  // namespace
}  // namespace ktd
