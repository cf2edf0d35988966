// What the AVX512 kernels share: activations, rounding to bf16, masked ends. For files compiled
// with F, BW, VL and DQ; internal linkage (see bf16.h).
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

// 1 / (1 + e^-x). The reciprocal is vrcp14ps with one step of Newton's method (relative error about
// 2^-23), a third of the time of a division; the step would make NaN of an infinite e^-x, whose
// reciprocal of 0 is kept instead.
inline __m512 Sigmoid(__m512 x) noexcept {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 sum = _mm512_add_ps(one, Exp(_mm512_xor_ps(x, _mm512_set1_ps(-0.0f))));
  const __m512 rough = _mm512_rcp14_ps(sum);
  const __m512 error = _mm512_fnmadd_ps(sum, rough, one);
  const __mmask16 finite = _mm512_cmp_ps_mask(sum, _mm512_set1_ps(3e38f), _CMP_NGE_UQ);
  return _mm512_mask_fmadd_ps(rough, finite, error, rough);
}

// The standard normal's distribution function, through Abramowitz and Stegun 7.1.26 (absolute error
// 1.5e-7 in erf).
inline __m512 Phi(__m512 x) noexcept {
  const __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
  const __m512 z = _mm512_mul_ps(_mm512_xor_ps(x, sign), _mm512_set1_ps(0.70710678f));
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 minus_square = _mm512_xor_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-0.0f));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), Exp(minus_square));
  const __m512 erf = _mm512_xor_ps(_mm512_sub_ps(one, tail), sign);
  return _mm512_fmadd_ps(erf, _mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
}

// The activation of sixteen gate and up sums, in float32; NaN stays NaN (min and max return their
// second operand then).
inline __m512 Activated(const Activation& activation, __m512 g, __m512 u) noexcept {
  if (activation.kind == ActivationKind::kSwish) {
    const __m512 limit = _mm512_set1_ps(activation.limit);
    g = _mm512_min_ps(limit, g);
    u = _mm512_max_ps(_mm512_set1_ps(-activation.limit), _mm512_min_ps(limit, u));
    const __m512 sigmoid = Sigmoid(_mm512_mul_ps(_mm512_set1_ps(activation.alpha), g));
    u = _mm512_add_ps(u, _mm512_set1_ps(activation.beta));
    return _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), u);
  }
  if (activation.kind == ActivationKind::kGelu) return _mm512_mul_ps(_mm512_mul_ps(g, Phi(g)), u);
  // (1 + tanh(z)) / 2 = sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3)
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(g, g), _mm512_set1_ps(0.07135481627f));
  const __m512 z = _mm512_mul_ps(g, _mm512_add_ps(cube, _mm512_set1_ps(1.5957691216f)));
  return _mm512_mul_ps(_mm512_mul_ps(g, Sigmoid(z)), u);
}

inline void ActivateMasked(const Activation& activation, const float* gate, const float* up,
                           std::size_t n, Bf16* act) noexcept {
  for (std::size_t i = 0; i < n; i += 16) {
    const std::size_t left = n - i < 16 ? n - i : 16;
    const __mmask16 mask = static_cast<__mmask16>((1u << left) - 1u);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
    const __m512 u = _mm512_maskz_loadu_ps(mask, up + i);
    _mm512_mask_cvtepi32_storeu_epi16(act + i, mask, NarrowSixteen(Activated(activation, g, u)));
  }
}

// The order of these additions is part of a kernel's result.
inline float SumSixteen(__m512 v) noexcept {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// Vec of panel.h.
struct Avx512Vec {
  using V = __m512;
  static constexpr std::size_t kLanes = 16;
  static V Zero() noexcept { return _mm512_setzero_ps(); }
  static V Set(float value) noexcept { return _mm512_set1_ps(value); }
  static V Load(const float* p) noexcept { return _mm512_loadu_ps(p); }
  static void Store(float* p, V v) noexcept { _mm512_storeu_ps(p, v); }
  static V Fma(V a, V b, V c) noexcept { return _mm512_fmadd_ps(a, b, c); }
  static float Sum(V v) noexcept { return SumSixteen(v); }
};

// Values 0, 2, 4, ... and 1, 3, 5, ... of 32 bf16: two operations widen all of them, where
// vpmovzxwd would need four. The order within a sum is free, as both factors share it.
struct Pairs {
  __m512 even;
  __m512 odd;
};

inline Pairs Split(__m512i values) noexcept {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(values, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(values, high))};
}

inline Pairs LoadPairs(const Bf16* p) noexcept { return Split(_mm512_loadu_si512(p)); }

inline Pairs LoadPairs(const Bf16* p, std::size_t n) noexcept {
  return Split(_mm512_maskz_loadu_epi16(First32(n), p));
}

// n bf16 values as float32, zeros up to the next multiple of 32, in the order of Pairs.
inline void WidenAll(const Bf16* from, std::size_t n, float* to) noexcept {
  for (std::size_t i = 0; i < n; i += 32) {
    const Pairs pairs = i + 32 <= n ? LoadPairs(from + i) : LoadPairs(from + i, n - i);
    _mm512_storeu_ps(to + i, pairs.even);
    _mm512_storeu_ps(to + i + 16, pairs.odd);
  }
}

}  // namespace
}  // namespace ktd
