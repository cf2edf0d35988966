// Column-major nibbles on AVX512-BF16: each lane multiplies pairs of inputs. The differences of
// nibbles and zero points, -16 to 15, index a table of 32 bf16 values by their lowest five bits.
#pragma once

#include "nibble_avx512_bf16.h"
#include "nibble_column_avx512.h"

namespace ktd {
namespace {

struct alignas(64) Differences {
  Bf16 at[32];
  constexpr Differences() : at() {
    for (int i = 0; i < 32; ++i) at[i] = UpperHalf(static_cast<float>(i < 16 ? i : i - 32));
  }
};
constexpr Differences kDifferences{};

struct Avx512Bf16Columns : Avx512Columns {
  static constexpr int kSteps = 4;
  static constexpr int kAwqLines = 2;
  static constexpr int kGptqOne = 64;
  static constexpr int kGptqMany = 32;
  static constexpr int kGptqTokens = 4;
  static constexpr int kAwqTokens = 4;
  using Zero = __m512i;  // in both words of a lane

  static Zero ZeroOf(__m512i zero) noexcept {
    return _mm512_or_si512(zero, _mm512_slli_epi32(zero, 16));
  }
  static __m512i Values(__m512i w, int j, Zero zero) noexcept {
    const __m512i nibbles =
        _mm512_and_si512(_mm512_srli_epi16(w, static_cast<unsigned>(4 * j)), _mm512_set1_epi16(15));
    return Lookup(_mm512_load_si512(&kDifferences), _mm512_sub_epi16(nibbles, zero));
  }
  static __m512 Madd(__m512 acc, __m512i values, const std::uint8_t* x, std::size_t i) noexcept {
    std::int32_t pair;
    std::memcpy(&pair, x + 4 * i, sizeof pair);
    return DotPairs(acc, values, _mm512_set1_epi32(pair));
  }
  static constexpr std::size_t GptqBytes(std::size_t columns) noexcept {
    return RoundUp(columns * sizeof(Bf16), 64);
  }
  // Of every eight inputs the pairs (0, 4), (1, 5), (2, 6) and (3, 7).
  static void GptqPack(const Bf16* x, std::size_t n, std::uint8_t* packed) noexcept {
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    for (std::size_t i = 0; i < n; i += 8) {
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
      _mm_store_si128(reinterpret_cast<__m128i*>(packed + 2 * i), _mm_shuffle_epi8(eight, order));
    }
  }
  // Two neighbours are a pair as they lie.
  static constexpr std::size_t AwqBytes(std::size_t) noexcept { return 0; }
  static void AwqPack(const Bf16*, std::size_t, std::uint8_t*) noexcept {}
  // Lower words of both lines side by side, and upper words.
  static void AwqParts(const __m512i (&lines)[2], __m512i (&parts)[2]) noexcept {
    constexpr __mmask32 kUpper = 0xaaaaaaaau;
    parts[0] = _mm512_mask_blend_epi16(kUpper, lines[0], _mm512_slli_epi32(lines[1], 16));
    parts[1] = _mm512_mask_blend_epi16(kUpper, _mm512_srli_epi32(lines[0], 16), lines[1]);
  }
};

}  // namespace
}  // namespace ktd
