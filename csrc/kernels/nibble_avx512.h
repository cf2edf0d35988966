// What the AVX512 kernels of 4-bit formats share: scales as float32, over rows and over lanes.
#pragma once

#include "avx512_math.h"
#include "nibble.h"

namespace ktd {
namespace {

inline __mmask16 FirstLanes(std::size_t n) noexcept {
  return static_cast<__mmask16>((1u << n) - 1u);  // n <= 16
}

// n <= 16 scales, then something finite.
inline __m512 LoadScales(ScaleType type, const std::uint8_t* p, std::size_t n) noexcept {
  const __mmask16 mask = FirstLanes(n);
  switch (type) {
    case ScaleType::kBf16:
      return _mm512_castsi512_ps(
          _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
    case ScaleType::kFloat16:
      return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
    case ScaleType::kE8m0: {
      const __m512i scale = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p));
      const __m512i half = _mm512_set1_epi32(0x00400000);
      const __m512i bits = _mm512_slli_epi32(scale, 23);
      // 0 stands for the denormal 2^-127, which is `half`; 255 for NaN, not for infinity.
      const __mmask16 ends = _mm512_testn_epi32_mask(scale, scale) |
                             _mm512_cmpeq_epi32_mask(scale, _mm512_set1_epi32(255));
      return _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, ends, bits, half));
    }
    case ScaleType::kFloat32:
    case ScaleType::kNone:
      break;
  }
  return _mm512_maskz_loadu_ps(mask, p);
}

// Isa of nibble_row.h, all but the products.
struct Avx512Nibbles {
  using Int = __m512i;
  using Float = __m512;
  static constexpr std::size_t kLanes = 16;
  static constexpr std::size_t kBlock = 128;

  static Int Load(const std::uint8_t* p, std::size_t n) noexcept {
    if (n == kBlock) [[likely]]
      return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi32(FirstLanes(n / 8), p);
  }
  static Float Scales(ScaleType type, const std::uint8_t* p, std::size_t n) noexcept {
    return LoadScales(type, p, n);
  }
  static Int SpreadIndex(int block, unsigned shift) noexcept {
    const __m512i group = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_srli_epi32(_mm512_add_epi32(group, _mm512_set1_epi32(block)), shift);
  }
  static Float Spread(Float scales, Int index) noexcept {
    return _mm512_permutexvar_ps(index, scales);
  }
  static Float Zero() noexcept { return _mm512_setzero_ps(); }
  static Float Fma(Float a, Float b, Float c) noexcept { return _mm512_fmadd_ps(a, b, c); }
  static float Sum(Float v) noexcept { return SumSixteen(v); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateMasked(activation, gate, up, n, act);
  }
};

// A vector of 16 float32 values, one for each nibble: vpermps looks at the lowest four bits only.
template <class Values>
struct FloatTable {
  __m512 values = _mm512_loadu_ps(Values::kOf);
};

inline __m512 Lookup(__m512 table, __m512i nibbles) noexcept {
  return _mm512_permutexvar_ps(nibbles, table);
}

// 16 float32 values from inputs 8 i + j of 128 bf16 values, for j = 0..7 one after the other.
inline void PackEighths(const Bf16* x, std::size_t n, std::uint8_t* to) noexcept {
  __m512i v[4];
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t left = n > 32 * i ? n - 32 * i : 0;
    v[i] = _mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffffu : First32(left), x + 32 * i);
  }
  // Double word j of every four: the inputs 8 i + 2 j and 8 i + 2 j + 1.
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  const __m512i low[2] = {_mm512_permutex2var_epi32(v[0], even, v[1]),
                          _mm512_permutex2var_epi32(v[0], odd, v[1])};
  const __m512i high[2] = {_mm512_permutex2var_epi32(v[2], even, v[3]),
                           _mm512_permutex2var_epi32(v[2], odd, v[3])};
  float* out = reinterpret_cast<float*>(to);
  for (std::size_t j = 0; j < 4; ++j) {
    const __m512i pair = _mm512_permutex2var_epi32(low[j % 2], j < 2 ? even : odd, high[j % 2]);
    const __m512i upper = _mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    _mm512_store_ps(out + 32 * j, _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)));
    _mm512_store_ps(out + 32 * j + 16, _mm512_castsi512_ps(upper));
  }
}

// n bf16 values, a multiple of 16, as float32 in their order.
inline void WidenInOrder(const Bf16* from, std::size_t n, float* to) noexcept {
  for (std::size_t i = 0; i < n; i += 16) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
    _mm512_storeu_ps(to + i, _mm512_castsi512_ps(wide));
  }
}

}  // namespace
}  // namespace ktd
