// What the 8-bit AVX512 kernels share: activations quantised as e4m3.h says, sixteen at a time.
#pragma once

#include "avx512_math.h"
#include "e4m3.h"

namespace ktd {
namespace {

// RoundE4m3() of e4m3.h.
inline __m512 RoundE4m3(__m512 value) noexcept {
  value = _mm512_min_ps(_mm512_set1_ps(kE4m3Max), value);  // the second operand, if either is NaN
  value = _mm512_max_ps(_mm512_set1_ps(-kE4m3Max), value);
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7ffff), odd);
  const __m512i rounded = _mm512_and_si512(_mm512_add_epi32(bits, half),
                                           _mm512_set1_epi32(static_cast<int>(0xfff00000u)));
  const __m512 magic = _mm512_set1_ps(0x1.8p+14f);
  const __mmask16 normal =
      _mm512_cmp_ps_mask(_mm512_abs_ps(value), _mm512_set1_ps(kE4m3Normal), _CMP_GE_OQ);
  // Those below are multiples of 2^-9; a NaN takes this way too and stays NaN.
  return _mm512_mask_mov_ps(_mm512_sub_ps(_mm512_add_ps(value, magic), magic), normal,
                            _mm512_castsi512_ps(rounded));
}

// The nearest integer, halves away from zero, as CUDA's roundf; |value| < 2^22, not NaN.
inline __m512i RoundAway(__m512 value) noexcept {
  const __m512 sign = _mm512_and_ps(value, _mm512_set1_ps(-0.0f));
  const __m512 half = _mm512_or_ps(sign, _mm512_set1_ps(0x1.fffffep-2f));  // just below a half
  return _mm512_cvttps_epi32(_mm512_add_ps(value, half));
}

inline __m512 WidenSixteen(__m256i values) noexcept {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}
inline __m256i LoadSixteen(const Bf16* x, std::size_t n) noexcept {
  const std::size_t some = n < 16 ? n : 16;
  return _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << some) - 1u), x);
}

inline float LargestLane(__m512i magnitudes) noexcept {
  const __m512i odd = _mm512_srli_epi32(magnitudes, 16);
  const __m512i even = _mm512_and_si512(magnitudes, _mm512_set1_epi32(0xffff));
  const auto largest = static_cast<unsigned>(_mm512_reduce_max_epu32(_mm512_max_epu32(odd, even)));
  return Widen(static_cast<Bf16>(largest));
}

// The largest magnitude; of what is not NaN, or else NaN if there is one.
template <bool SkipNan>
inline float LargestBf16(const Bf16* x, std::size_t n) noexcept {
  __m512i largest = _mm512_setzero_si512();
  const __m512i infinity = _mm512_set1_epi16(0x7f80);
  for (std::size_t i = 0; i < n; i += 32) {
    const __mmask32 mask = n - i >= 32 ? 0xffffffffu : First32(n - i);
    const __m512i value =
        _mm512_and_si512(_mm512_maskz_loadu_epi16(mask, x + i), _mm512_set1_epi16(0x7fff));
    if constexpr (SkipNan) {
      const __mmask32 number = _mm512_cmple_epu16_mask(value, infinity);
      largest = _mm512_mask_max_epu16(largest, number, largest, value);
    } else {
      largest = _mm512_max_epu16(largest, value);
    }
  }
  return LargestLane(largest);
}

// Sixteen quantised values at a time to store(i, values), up to a multiple of 128 inputs.
template <class Store>
inline void QuantiseE4m3(const Bf16* x, std::size_t n, float inverse, const Store& store) noexcept {
  const __m512 factor = _mm512_set1_ps(inverse);
  std::size_t i = 0;
  for (; i < n; i += 16) {
    const __m512 value = WidenSixteen(LoadSixteen(x + i, n - i));
    store(i, RoundE4m3(_mm512_mul_ps(value, factor)));
  }
  for (; i % kFp8Block != 0; i += 16) store(i, _mm512_setzero_ps());
}

// The same in int8, sixteen of 32 bits at a time. Where the scale is NaN all values are 0.
template <class Store>
inline void QuantiseInt8(const Bf16* x, std::size_t n, float inverse, const Store& store) noexcept {
  const __m512 factor = _mm512_set1_ps(inverse);
  std::size_t i = 0;
  for (; i < n && inverse != 0.0f; i += 16) {
    const __m512 value = WidenSixteen(LoadSixteen(x + i, n - i));
    store(i, RoundAway(_mm512_mul_ps(value, factor)));
  }
  for (; i < n || i % kFp8Block != 0; i += 16) store(i, _mm512_setzero_si512());
}

struct StoreFloats {
  std::uint8_t* values;
  void operator()(std::size_t i, __m512 value) const noexcept {
    _mm512_store_ps(values + i * sizeof(float), value);
  }
};
// In the order of E4m3Halves: of 64 values the lower eight of each sixteen, then the others. What
// is stored is exact in bf16.
struct StoreBf16Halves {
  std::uint8_t* values;
  void operator()(std::size_t i, __m512 value) const noexcept {
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(value), 16);
    const __m256i sixteen = _mm512_cvtepi32_epi16(high);
    auto* group = reinterpret_cast<__m128i*>(values + i / 64 * 64 * sizeof(Bf16)) + i % 64 / 16;
    _mm_store_si128(group, _mm256_castsi256_si128(sixteen));
    _mm_store_si128(group + 4, _mm256_extracti128_si256(sixteen, 1));
  }
};

}  // namespace
}  // namespace ktd
