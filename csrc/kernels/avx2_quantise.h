// What the 8-bit AVX2 kernels share: activations quantised as e4m3.h says, eight at a time.
#pragma once

#include "avx2_math.h"
#include "e4m3.h"

namespace ktd {
namespace {

// RoundE4m3() of e4m3.h.
inline __m256 RoundE4m3(__m256 value) noexcept {
  value = _mm256_min_ps(_mm256_set1_ps(kE4m3Max), value);  // the second operand, if either is NaN
  value = _mm256_max_ps(_mm256_set1_ps(-kE4m3Max), value);
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7ffff), odd);
  const __m256i rounded = _mm256_and_si256(_mm256_add_epi32(bits, half),
                                           _mm256_set1_epi32(static_cast<int>(0xfff00000u)));
  const __m256 magic = _mm256_set1_ps(0x1.8p+14f);
  const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value);
  const __m256 normal = _mm256_cmp_ps(magnitude, _mm256_set1_ps(kE4m3Normal), _CMP_GE_OQ);
  // Those below are multiples of 2^-9; a NaN takes this way too and stays NaN.
  return _mm256_blendv_ps(_mm256_sub_ps(_mm256_add_ps(value, magic), magic),
                          _mm256_castsi256_ps(rounded), normal);
}

// The nearest integer, halves away from zero, as CUDA's roundf; |value| < 2^22, not NaN.
inline __m256i RoundAway(__m256 value) noexcept {
  const __m256 sign = _mm256_and_ps(value, _mm256_set1_ps(-0.0f));
  const __m256 half = _mm256_or_ps(sign, _mm256_set1_ps(0x1.fffffep-2f));  // just below a half
  return _mm256_cvttps_epi32(_mm256_add_ps(value, half));
}

inline __m256 WidenEight(__m128i values) noexcept {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
}
// x[0..n) and zeros.
inline __m128i LoadEight(const Bf16* x, std::size_t n) noexcept {
  if (n >= 8) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  alignas(16) Bf16 padded[8] = {};
  for (std::size_t i = 0; i < n; ++i) padded[i] = x[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(padded));
}

// The largest magnitude; of what is not NaN, or else NaN if there is one.
template <bool SkipNan>
inline float LargestBf16(const Bf16* x, std::size_t n) noexcept {
  __m128i largest = _mm_setzero_si128();
  for (std::size_t i = 0; i < n; i += 8) {
    __m128i value = _mm_and_si128(LoadEight(x + i, n - i), _mm_set1_epi16(0x7fff));
    if constexpr (SkipNan) {
      value = _mm_andnot_si128(_mm_cmpgt_epi16(value, _mm_set1_epi16(0x7f80)), value);
    }
    largest = _mm_max_epi16(largest, value);
  }
  largest = _mm_max_epi16(largest, _mm_srli_si128(largest, 8));
  largest = _mm_max_epi16(largest, _mm_srli_si128(largest, 4));
  largest = _mm_max_epi16(largest, _mm_srli_si128(largest, 2));
  return Widen(static_cast<Bf16>(_mm_extract_epi16(largest, 0)));
}

// Eight quantised values at a time to store(i, values), up to a multiple of 128 inputs.
template <class Store>
inline void QuantiseE4m3(const Bf16* x, std::size_t n, float inverse, const Store& store) noexcept {
  const __m256 factor = _mm256_set1_ps(inverse);
  std::size_t i = 0;
  for (; i < n; i += 8) {
    const __m256 value = WidenEight(LoadEight(x + i, n - i));
    store(i, RoundE4m3(_mm256_mul_ps(value, factor)));
  }
  for (; i % kFp8Block != 0; i += 8) store(i, _mm256_setzero_ps());
}

// The same in int8, eight of 32 bits at a time. Where the scale is NaN all values are 0.
template <class Store>
inline void QuantiseInt8(const Bf16* x, std::size_t n, float inverse, const Store& store) noexcept {
  const __m256 factor = _mm256_set1_ps(inverse);
  std::size_t i = 0;
  for (; i < n && inverse != 0.0f; i += 8) {
    const __m256 value = WidenEight(LoadEight(x + i, n - i));
    store(i, RoundAway(_mm256_mul_ps(value, factor)));
  }
  for (; i < n || i % kFp8Block != 0; i += 8) store(i, _mm256_setzero_si256());
}

}  // namespace
}  // namespace ktd
