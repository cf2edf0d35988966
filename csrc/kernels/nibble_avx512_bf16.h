// Nibbles as bf16 values, 32 at a time: vpermw looks at the lowest five bits of each word, so a
// table that holds the 16 values twice needs no mask.
#pragma once

#include "nibble_avx512.h"

namespace ktd {
namespace {

inline constexpr Bf16 UpperHalf(float value) noexcept {
  return static_cast<Bf16>(__builtin_bit_cast(std::uint32_t, value) >> 16);
}

template <class Values>
struct Bf16Table {
  struct alignas(64) Words {
    Bf16 at[32];
    constexpr Words() : at() {
      for (int i = 0; i < 32; ++i) at[i] = UpperHalf(Values::kOf[i % 16]);
    }
  };
  static constexpr Words kWords{};
  __m512i values = _mm512_load_si512(&kWords);
};

inline __m512i Lookup(__m512i table, __m512i nibbles) noexcept {
  return _mm512_permutexvar_epi16(nibbles, table);
}

inline __m512 DotPairs(__m512 acc, __m512i w, __m512i x) noexcept {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}

}  // namespace
}  // namespace ktd
