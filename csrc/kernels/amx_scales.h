// What the 8-bit AMX kernels share: tokens quantised sixteen at a time, one token in every lane of
// 32 bits, and sums scaled. A token block's scales lie behind its tiles, a cache line of sixteen
// for each range of inputs that has one.
#pragma once

#include "amx_bf16_tiles.h"
#include "avx512_quantise.h"

namespace ktd {
namespace {

struct SixteenQuantisers {
  __m512 scale;
  __m512 inverse;
};

template <Quantiser (&One)(float)>
inline SixteenQuantisers Quantisers(__m512 largest) noexcept {
  alignas(64) float scale[16];
  alignas(64) float inverse[16];
  _mm512_store_ps(scale, largest);
  for (int t = 0; t < 16; ++t) {
    const Quantiser quantiser = One(scale[t]);
    scale[t] = quantiser.scale;
    inverse[t] = quantiser.inverse;
  }
  return {_mm512_load_ps(scale), _mm512_load_ps(inverse)};
}

// The largest magnitudes of `lines` lines of pairs of bf16, one token a lane.
template <bool SkipNan>
inline __m512 LargestOfLines(const std::uint8_t* lines, std::size_t count) noexcept {
  __m512i largest = _mm512_setzero_si512();
  for (std::size_t i = 0; i < count; ++i) {
    const __m512i value =
        _mm512_and_si512(_mm512_load_si512(lines + i * kTileLine), _mm512_set1_epi16(0x7fff));
    if constexpr (SkipNan) {
      const __mmask32 number = _mm512_cmple_epu16_mask(value, _mm512_set1_epi16(0x7f80));
      largest = _mm512_mask_max_epu16(largest, number, largest, value);
    } else {
      largest = _mm512_max_epu16(largest, value);
    }
  }
  const __m512i even = _mm512_slli_epi32(largest, 16);
  const __m512i odd = _mm512_and_si512(largest, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  return _mm512_castsi512_ps(_mm512_max_epu32(even, odd));
}

inline __m512 EvenOf(__m512i pairs) noexcept {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
inline __m512 OddOf(__m512i pairs) noexcept {
  return _mm512_castsi512_ps(
      _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// `count` lines of pairs of bf16, quantised to E4M3 values in bf16. `to` may be `from`.
inline void QuantiseLines(const std::uint8_t* from, std::size_t count, __m512 inverse,
                          std::uint8_t* to) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const __m512i pairs = _mm512_load_si512(from + i * kTileLine);
    const __m512 even = RoundE4m3(_mm512_mul_ps(EvenOf(pairs), inverse));
    const __m512 odd = RoundE4m3(_mm512_mul_ps(OddOf(pairs), inverse));
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    _mm512_store_si512(to + i * kTileLine, _mm512_or_si512(low, _mm512_castps_si512(odd)));
  }
}

inline float ScaleOf(const Matrix& m, std::size_t row) noexcept {
  return *reinterpret_cast<const float*>(m.scales + row * m.scale_pitch);
}

// sums[r] *= the row's scale times the tokens'; rows behind the matrix's last stay.
inline void ScaleSums(const Matrix& m, std::size_t row, __m512 tokens, Sums& sums) noexcept {
  const std::size_t rows = row < m.rows ? Smaller(kPanelRows, m.rows - row) : 0;
  for (std::size_t r = 0; r < rows; ++r) {
    const __m512 scale = _mm512_mul_ps(tokens, _mm512_set1_ps(ScaleOf(m, row + r)));
    _mm512_store_ps(sums.at[r], _mm512_mul_ps(_mm512_load_ps(sums.at[r]), scale));
  }
}

// Fill for formats of one byte a weight: 64 weights at a time to `decode`, which gives two lines of
// 32 bf16.
template <class Decode>
inline void FillFromBytes(const Matrix& m, std::size_t row, std::size_t rows, std::uint8_t* panel,
                          const Decode& decode) noexcept {
  const std::size_t steps = Blocks(m.columns, 32);
  for (std::size_t r = 0; r < kPanelRows; ++r) {
    std::uint8_t* to = panel + r * kTileLine;
    if (r >= rows) {
      for (std::size_t s = 0; s < steps; ++s) {
        _mm512_store_si512(to + s * kTileBytes, _mm512_setzero_si512());
      }
      continue;
    }
    const std::uint8_t* from = m.weights + (row + r) * m.pitch;
    std::size_t i = 0;
    for (; i + 64 <= m.columns; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(from + i) + 4096, _MM_HINT_T0);
      const auto pair = decode(_mm512_loadu_si512(from + i));
      _mm512_store_si512(to + i / 32 * kTileBytes, pair.first);
      _mm512_store_si512(to + (i / 32 + 1) * kTileBytes, pair.second);
    }
    if (i == m.columns) continue;
    const __mmask64 mask = (__mmask64{1} << (m.columns - i)) - 1;
    const auto pair = decode(_mm512_maskz_loadu_epi8(mask, from + i));
    _mm512_store_si512(to + i / 32 * kTileBytes, pair.first);
    if (i / 32 + 1 < steps) _mm512_store_si512(to + (i / 32 + 1) * kTileBytes, pair.second);
  }
}

inline Range StreamOf(const Matrix& m, std::size_t row) noexcept {
  return {m.weights + row * m.pitch, Smaller(kPanelRows, m.rows - row) * m.pitch};
}

}  // namespace
}  // namespace ktd
