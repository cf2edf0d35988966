// Rows of nibbles on AVX512 F, BW, VL and DQ: eight look-ups in a table of 16 float32 values take a
// vector of 128 nibbles apart without a mask, as vpermps ignores the bits above the nibble.
#pragma once

#include "nibble_avx512.h"
#include "nibble_row.h"

namespace ktd {
namespace {

struct Avx512NibbleRows : Avx512Nibbles {
  static constexpr int kRowsOne = 4;
  static constexpr int kRowsMany = 4;
  static constexpr int kTokens = 4;
  static constexpr std::size_t kPackedBlock = kBlock * sizeof(float);
  template <class Values>
  using Table = FloatTable<Values>;

  static void PackBlock(const Bf16* x, std::size_t n, std::uint8_t* to) noexcept {
    PackEighths(x, n, to);
  }

  template <int N, class Values>
  static void Multiply(__m512i w, const Table<Values>& table, const std::uint8_t* const (&x)[N],
                       __m512 (&acc)[N]) noexcept {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m512 value = Lookup(table.values, w);
      w = _mm512_srli_epi32(w, 4);
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
        const __m512 inputs = _mm512_load_ps(reinterpret_cast<const float*>(x[t]) + 16 * j);
        acc[t] = j == 0 ? _mm512_mul_ps(value, inputs) : _mm512_fmadd_ps(value, inputs, acc[t]);
      }
    }
  }
};

}  // namespace
}  // namespace ktd
