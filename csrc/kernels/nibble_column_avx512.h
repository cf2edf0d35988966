// What the AVX512 kernels of column-major nibbles share, and the one that multiplies float32
// values.
#pragma once

#include "nibble_avx512.h"
#include "nibble_column.h"

namespace ktd {
namespace {

struct Avx512Columns {
  using Int = __m512i;
  using Float = __m512;
  static constexpr std::size_t kLanes = 16;

  static Int LoadLanes(const std::uint8_t* p, std::size_t n) noexcept {
    if (n == kLanes) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi32(FirstLanes(n), p);
  }
  static Int Nibbles(const std::uint8_t* p) noexcept {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i both =
        _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m512i each = _mm512_permutexvar_epi32(_mm512_srli_epi32(lane, 3), both);
    const __m512i shift = _mm512_slli_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(7)), 2);
    return _mm512_and_si512(_mm512_srlv_epi32(each, shift), _mm512_set1_epi32(15));
  }
  static Int Nibble(Int packed, int i) noexcept {
    return _mm512_and_si512(_mm512_srli_epi32(packed, static_cast<unsigned>(4 * i)),
                            _mm512_set1_epi32(15));
  }
  static Int AddOne(Int v) noexcept { return _mm512_add_epi32(v, _mm512_set1_epi32(1)); }

  static Float LaneScales(ScaleType type, const std::uint8_t* p) noexcept {
    return LoadScales(type, p, kLanes);
  }
  static Float StridedScales(ScaleType type, const std::uint8_t* p, std::size_t n) noexcept {
    alignas(64) float scales[kLanes] = {};
    for (std::size_t i = 0; i < n; ++i) scales[i] = ScaleAt(type, p, 8 * i);
    return _mm512_load_ps(scales);
  }
  static Float ZeroSums() noexcept { return _mm512_setzero_ps(); }
  static Float Fma(Float a, Float b, Float c) noexcept { return _mm512_fmadd_ps(a, b, c); }
  static void Store(float* p, Float v) noexcept { _mm512_storeu_ps(p, v); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateMasked(activation, gate, up, n, act);
  }
};

struct Avx512FloatColumns : Avx512Columns {
  static constexpr int kSteps = 8;
  static constexpr int kAwqLines = 1;
  static constexpr int kGptqOne = 64;
  static constexpr int kGptqMany = 32;
  static constexpr int kGptqTokens = 4;
  static constexpr int kAwqTokens = 2;
  using Zero = __m512;

  static Zero ZeroOf(__m512i zero) noexcept { return _mm512_cvtepi32_ps(zero); }
  static __m512 Values(__m512i w, int j, Zero zero) noexcept {
    const __m512i low = _mm512_srli_epi32(w, static_cast<unsigned>(4 * j));
    return _mm512_sub_ps(Lookup(FloatTable<UnsignedValues>().values, low), zero);
  }
  static __m512 Madd(__m512 acc, __m512 values, const std::uint8_t* x, std::size_t i) noexcept {
    return _mm512_fmadd_ps(values, _mm512_set1_ps(reinterpret_cast<const float*>(x)[i]), acc);
  }
  static constexpr std::size_t GptqBytes(std::size_t columns) noexcept {
    return PanelBytes(columns);
  }
  static void GptqPack(const Bf16* x, std::size_t n, std::uint8_t* packed) noexcept {
    WidenInOrder(x, n, reinterpret_cast<float*>(packed));
  }
  static constexpr std::size_t AwqBytes(std::size_t columns) noexcept {
    return PanelBytes(columns);
  }
  static void AwqPack(const Bf16* x, std::size_t n, std::uint8_t* packed) noexcept {
    WidenInOrder(x, n, reinterpret_cast<float*>(packed));
  }
  static void AwqParts(const __m512i (&lines)[1], __m512i (&parts)[1]) noexcept {
    parts[0] = lines[0];
  }
};

}  // namespace
}  // namespace ktd
