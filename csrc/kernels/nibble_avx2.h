// What the AVX2 kernels of 4-bit formats share: scales as float32, over rows and over lanes.
#pragma once

#include "avx2_math.h"
#include "nibble.h"

namespace ktd {
namespace {

// Eight float16 values without F16C: see WidenHalf.
inline __m256 WidenHalves(__m128i halves) noexcept {
  const __m256i bits = _mm256_cvtepu16_epi32(halves);
  const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(bits, 15), 31);
  const __m256i rest = _mm256_slli_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fff)), 13);
  const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(rest), _mm256_set1_ps(0x1p112f));
  const __m256i large = _mm256_cmpgt_epi32(rest, _mm256_set1_epi32((0x7c00 << 13) - 1));
  const __m256i top = _mm256_and_si256(large, _mm256_set1_epi32(0x7f800000));
  const __m256i ends = _mm256_and_si256(large, rest);
  const __m256 finite = _mm256_andnot_ps(_mm256_castsi256_ps(large), value);
  const __m256i all = _mm256_or_si256(_mm256_or_si256(sign, top), ends);
  return _mm256_or_ps(finite, _mm256_castsi256_ps(all));
}

inline __m256 WidenE8m0s(__m256i scales) noexcept {
  const __m256i half = _mm256_set1_epi32(0x00400000);
  const __m256i none = _mm256_cmpeq_epi32(scales, _mm256_setzero_si256());
  const __m256i last = _mm256_cmpeq_epi32(scales, _mm256_set1_epi32(255));
  const __m256i extra = _mm256_and_si256(_mm256_or_si256(none, last), half);
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(scales, 23), extra));
}

inline __m256 LoadEightScales(ScaleType type, const std::uint8_t* p) noexcept {
  switch (type) {
    case ScaleType::kBf16:
      return _mm256_castsi256_ps(_mm256_slli_epi32(
          _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
    case ScaleType::kFloat16:
      return WidenHalves(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    case ScaleType::kE8m0:
      return WidenE8m0s(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    case ScaleType::kFloat32:
    case ScaleType::kNone:
      break;
  }
  return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
}

// n <= 8 scales, then something finite.
inline __m256 LoadScales(ScaleType type, const std::uint8_t* p, std::size_t n) noexcept {
  if (n == 8) [[likely]]
    return LoadEightScales(type, p);
  alignas(32) std::uint8_t some[32] = {};
  const std::size_t bytes = n * ScaleBytes(type);
  for (std::size_t i = 0; i < bytes; ++i) some[i] = p[i];
  return LoadEightScales(type, some);
}

inline __m256i FirstLanes(std::size_t n) noexcept {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}

// n lanes, then zeros.
inline __m256i LoadLanes(const std::uint8_t* p, std::size_t n) noexcept {
  if (n == 8) [[likely]]
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_maskload_epi32(reinterpret_cast<const int*>(p), FirstLanes(n));
}

// n bf16 values, a multiple of 8, as float32 in their order.
inline void WidenInOrder(const Bf16* from, std::size_t n, float* to) noexcept {
  for (std::size_t i = 0; i < n; i += 8) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
    _mm256_storeu_ps(to + i, _mm256_castsi256_ps(wide));
  }
}

}  // namespace
}  // namespace ktd
