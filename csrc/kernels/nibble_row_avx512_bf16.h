// Rows of nibbles on AVX512-BF16. Nibble j of each word is input 4 i + j, so four vectors of inputs
// are prepared for a block. Like all products of vdpbf16ps these are exact, and denormals are lost.
#pragma once

#include "nibble_avx512_bf16.h"
#include "nibble_row.h"

namespace ktd {
namespace {

struct Avx512Bf16NibbleRows : Avx512Nibbles {
  static constexpr int kRowsOne = 4;
  static constexpr int kRowsMany = 4;
  static constexpr int kTokens = 4;
  static constexpr std::size_t kPackedBlock = kBlock * sizeof(Bf16);
  template <class Values>
  using Table = Bf16Table<Values>;

  static void PackBlock(const Bf16* x, std::size_t n, std::uint8_t* to) noexcept {
    __m512i v[4];
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t left = n > 32 * i ? n - 32 * i : 0;
      v[i] = _mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffffu : First32(left), x + 32 * i);
    }
    const __m512i step =
        _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13,
                         12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i even = _mm512_slli_epi16(step, 1);
    const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    const __m512i low[2] = {_mm512_permutex2var_epi16(v[0], even, v[1]),
                            _mm512_permutex2var_epi16(v[0], odd, v[1])};
    const __m512i high[2] = {_mm512_permutex2var_epi16(v[2], even, v[3]),
                             _mm512_permutex2var_epi16(v[2], odd, v[3])};
    for (std::size_t j = 0; j < 4; ++j) {
      const __m512i quarter =
          _mm512_permutex2var_epi16(low[j % 2], j < 2 ? even : odd, high[j % 2]);
      _mm512_store_si512(to + 64 * j, quarter);
    }
  }

  template <int N, class Values>
  static void Multiply(__m512i w, const Table<Values>& table, const std::uint8_t* const (&x)[N],
                       __m512 (&acc)[N]) noexcept {
#pragma GCC unroll 8
    for (int j = 0; j < 4; ++j) {
      const __m512i value = Lookup(table.values, w);
      w = _mm512_srli_epi16(w, 4);
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
        const __m512 before = j == 0 ? _mm512_setzero_ps() : acc[t];
        acc[t] = DotPairs(before, value, _mm512_load_si512(x[t] + 64 * j));
      }
    }
  }
};

}  // namespace
}  // namespace ktd
