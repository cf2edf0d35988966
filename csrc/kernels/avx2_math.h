// What the AVX2 kernels share: activations, rounding to bf16. For files compiled with AVX2 and FMA;
// internal linkage (see bf16.h).
#pragma once

#include <immintrin.h>

#include "bf16.h"
#include "moe_job.h"

namespace ktd {
namespace {

// e^x. Range reduction and polynomial of Cephes expf (relative error 2e-7). Both clamps keep NaN;
// at 89 the result overflows to infinity as it should.
inline __m256 Exp(__m256 x) noexcept {
  x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
  x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  // 2^n in two factors: n reaches 128, which one float exponent does not.
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i rest = _mm256_sub_epi32(exponent, half);
  const __m256i bias = _mm256_set1_epi32(127);
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

// Narrow() of bf16.h, eight at a time.
inline __m128i NarrowEight(__m256 value) noexcept {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd);
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

// 1 / (1 + e^-x).
inline __m256 Sigmoid(__m256 x) noexcept {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(one, _mm256_add_ps(one, Exp(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f)))));
}

// The standard normal's distribution function, through Abramowitz and Stegun 7.1.26 (absolute error
// 1.5e-7 in erf).
inline __m256 Phi(__m256 x) noexcept {
  const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
  const __m256 z = _mm256_mul_ps(_mm256_xor_ps(x, sign), _mm256_set1_ps(0.70710678f));
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(z, _mm256_set1_ps(0.3275911f), one));
  __m256 p = _mm256_set1_ps(1.061405429f);
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-1.453152027f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(1.421413741f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.284496736f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.254829592f));
  const __m256 minus_square = _mm256_xor_ps(_mm256_mul_ps(z, z), _mm256_set1_ps(-0.0f));
  const __m256 tail = _mm256_mul_ps(_mm256_mul_ps(p, t), Exp(minus_square));
  const __m256 erf = _mm256_xor_ps(_mm256_sub_ps(one, tail), sign);
  return _mm256_fmadd_ps(erf, _mm256_set1_ps(0.5f), _mm256_set1_ps(0.5f));
}

// The activation of eight gate and up sums, in float32; NaN stays NaN (min and max return their
// second operand then).
inline __m256 Activated(const Activation& activation, __m256 g, __m256 u) noexcept {
  if (activation.kind == ActivationKind::kSwish) {
    const __m256 limit = _mm256_set1_ps(activation.limit);
    g = _mm256_min_ps(limit, g);
    u = _mm256_max_ps(_mm256_set1_ps(-activation.limit), _mm256_min_ps(limit, u));
    const __m256 sigmoid = Sigmoid(_mm256_mul_ps(_mm256_set1_ps(activation.alpha), g));
    u = _mm256_add_ps(u, _mm256_set1_ps(activation.beta));
    return _mm256_mul_ps(_mm256_mul_ps(g, sigmoid), u);
  }
  if (activation.kind == ActivationKind::kGelu) return _mm256_mul_ps(_mm256_mul_ps(g, Phi(g)), u);
  // (1 + tanh(z)) / 2 = sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3)
  const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(g, g), _mm256_set1_ps(0.07135481627f));
  const __m256 z = _mm256_mul_ps(g, _mm256_add_ps(cube, _mm256_set1_ps(1.5957691216f)));
  return _mm256_mul_ps(_mm256_mul_ps(g, Sigmoid(z)), u);
}

inline void ActivateEight(const Activation& activation, const float* gate, const float* up,
                          Bf16* act) noexcept {
  const __m256 value = Activated(activation, _mm256_loadu_ps(gate), _mm256_loadu_ps(up));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(act), NarrowEight(value));
}

inline void ActivateAll(const Activation& activation, const float* gate, const float* up,
                        std::size_t n, Bf16* act) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) ActivateEight(activation, gate + i, up + i, act + i);
  if (i == n) return;
  float g[8] = {};
  float u[8] = {};
  Bf16 narrow[8];
  for (std::size_t k = 0; i + k < n; ++k) {
    g[k] = gate[i + k];
    u[k] = up[i + k];
  }
  ActivateEight(activation, g, u, narrow);
  for (std::size_t k = 0; i + k < n; ++k) act[i + k] = narrow[k];
}

// The order of these additions is part of a kernel's result.
inline float SumEight(__m256 v) noexcept {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// Vec of panel.h.
struct Avx2Vec {
  using V = __m256;
  static constexpr std::size_t kLanes = 8;
  static V Zero() noexcept { return _mm256_setzero_ps(); }
  static V Set(float value) noexcept { return _mm256_set1_ps(value); }
  static V Load(const float* p) noexcept { return _mm256_loadu_ps(p); }
  static void Store(float* p, V v) noexcept { _mm256_storeu_ps(p, v); }
  static V Fma(V a, V b, V c) noexcept { return _mm256_fmadd_ps(a, b, c); }
  static float Sum(V v) noexcept { return SumEight(v); }
};

// Values 0, 2, 4, ... and 1, 3, 5, ... of 16 bf16: two operations widen all of them, where
// vpmovzxwd would need four. The order within a sum is free, as both factors share it.
struct Pairs {
  __m256 even;
  __m256 odd;
};

inline Pairs Split(__m256i values) noexcept {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(values, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(values, high))};
}

inline Pairs LoadPairs(const Bf16* p) noexcept {
  return Split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline Pairs LoadPairs(const Bf16* p, std::size_t n) noexcept {
  alignas(32) Bf16 padded[16] = {};
  for (std::size_t i = 0; i < n; ++i) padded[i] = p[i];
  return LoadPairs(padded);
}

// n bf16 values as float32, zeros up to the next multiple of 16, in the order of Pairs.
inline void WidenAll(const Bf16* from, std::size_t n, float* to) noexcept {
  for (std::size_t i = 0; i < n; i += 16) {
    const Pairs pairs = i + 16 <= n ? LoadPairs(from + i) : LoadPairs(from + i, n - i);
    _mm256_storeu_ps(to + i, pairs.even);
    _mm256_storeu_ps(to + i + 8, pairs.odd);
  }
}

}  // namespace
}  // namespace ktd
