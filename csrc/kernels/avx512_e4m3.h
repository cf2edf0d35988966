// E4M3 weights as bf16, by table (VBMI): two look-ups of 64 bytes each, whatever the values are.
#pragma once

#include "avx512_quantise.h"

namespace ktd {
namespace {

// The upper and the lower bytes of the bf16 values of the 128 codes without sign.
struct alignas(64) E4m3Tables {
  std::uint8_t high[128];
  std::uint8_t low[128];
};

constexpr E4m3Tables MakeE4m3Tables() noexcept {
  E4m3Tables tables{};
  for (unsigned code = 0; code < 128; ++code) {
    tables.high[code] = static_cast<std::uint8_t>(E4m3AsBf16(code) >> 8);
    tables.low[code] = static_cast<std::uint8_t>(E4m3AsBf16(code) & 0xff);
  }
  return tables;
}

constexpr E4m3Tables kE4m3Tables = MakeE4m3Tables();

struct Bf16Pair {
  __m512i first;   // 32 values
  __m512i second;  // the next 32
};

// Of each lane of 16 codes, the values of the lower eight in `first`, of the others in `second`.
inline Bf16Pair E4m3Halves(__m512i codes) noexcept {
  // The look-up takes seven bits of an index, so the sign does not disturb it.
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kE4m3Tables.high), codes,
                                                _mm512_load_si512(kE4m3Tables.high + 64));
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kE4m3Tables.low), codes,
                                               _mm512_load_si512(kE4m3Tables.low + 64));
  const __m512i sign = _mm512_set1_epi8(-128);
  const __m512i signed_high = _mm512_ternarylogic_epi64(high, codes, sign, 0xf8);  // a | (b & c)
  return {_mm512_unpacklo_epi8(low, signed_high), _mm512_unpackhi_epi8(low, signed_high)};
}

// In order: every lane gets 8 bytes of the first half and 8 of the second.
inline Bf16Pair E4m3ToBf16(__m512i bytes) noexcept {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  return E4m3Halves(_mm512_permutexvar_epi64(order, bytes));
}

}  // namespace
}  // namespace ktd
