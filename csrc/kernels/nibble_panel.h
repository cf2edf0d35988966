// Four-bit weights as AMX panels of bf16 values: each group of a row has a table of its 16 values,
// rounded once, bf16((nibble's value - zero point) * scale). E2M1 times a power of two is exact;
// what bf16 cannot hold becomes infinite, and denormals count as zero in the tile products.
#pragma once

#include "amx.h"
#include "amx_bf16_tiles.h"
#include "nibble_avx512_bf16.h"

namespace ktd {
namespace {

// 16 values in both halves, for vpermw.
inline __m512i PanelTable(__m512 values) noexcept {
  return _mm512_broadcast_i64x4(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

// 32 inputs from 16 bytes: each byte goes to a double word, its upper nibble to the upper word.
inline __m512i DecodeLine(const std::uint8_t* packed, __m512i table) noexcept {
  const __m512i bytes =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
  return Lookup(table, _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12)));
}

// 16 values of one group, then 16 of another: one rounding for both.
inline __m512i PanelTables(__m512 first, __m512 second) noexcept {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

// DecodeLine by one half of PanelTables().
template <int Half>
inline __m512i DecodeLineBy(const std::uint8_t* packed, __m512i tables) noexcept {
  const __m512i bytes =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
  const __m512i upper = _mm512_slli_epi32(bytes, 12);
  if constexpr (Half == 0) {
    // (bytes | upper) & nibbles
    return Lookup(tables, _mm512_ternarylogic_epi32(bytes, upper, _mm512_set1_epi16(0x0f), 0xa8));
  } else {
    // bytes | upper | the second half
    return Lookup(tables, _mm512_ternarylogic_epi32(bytes, upper, _mm512_set1_epi16(0x10), 0xfe));
  }
}

inline void ZeroLine(std::size_t r, std::size_t steps, std::uint8_t* panel) noexcept {
  for (std::size_t s = 0; s < steps; ++s) {
    _mm512_store_si512(panel + s * kTileBytes + r * kTileLine, _mm512_setzero_si512());
  }
}

template <class Values>
struct NibbleRowPanels : Bf16Tiles {
  static void Fill(const Matrix& m, std::size_t row, std::size_t rows,
                   std::uint8_t* panel) noexcept {
    const __m512 values = _mm512_loadu_ps(Values::kOf);
    const std::size_t scale_bytes = ScaleBytes(m.scale_type);
    const std::size_t group_steps = m.group / kStep;
    for (std::size_t r = 0; r < kPanelRows; ++r) {
      if (r >= rows) {
        ZeroLine(r, m.columns / kStep, panel);
        continue;
      }
      const std::uint8_t* from = m.weights + (row + r) * m.pitch;
      const std::uint8_t* scales = m.scales + (row + r) * m.scale_pitch;
      std::uint8_t* to = panel + r * kTileLine;
      const std::size_t groups = m.columns / m.group;
      for (std::size_t first = 0; first < groups; first += 16) {
        const std::size_t here = Smaller(16, groups - first);
        alignas(64) float wide[16];
        _mm512_store_ps(wide, LoadScales(m.scale_type, scales + first * scale_bytes, here));
        std::size_t g = 0;
        for (; g + 2 <= here; g += 2) {
          const __m512i tables = PanelTables(_mm512_mul_ps(values, _mm512_set1_ps(wide[g])),
                                             _mm512_mul_ps(values, _mm512_set1_ps(wide[g + 1])));
          for (std::size_t s = 0; s < group_steps; ++s, from += 16, to += kTileBytes) {
            _mm512_store_si512(to, DecodeLineBy<0>(from, tables));
          }
          for (std::size_t s = 0; s < group_steps; ++s, from += 16, to += kTileBytes) {
            _mm512_store_si512(to, DecodeLineBy<1>(from, tables));
          }
        }
        if (g == here) continue;
        const __m512i table = PanelTable(_mm512_mul_ps(values, _mm512_set1_ps(wide[g])));
        for (std::size_t s = 0; s < group_steps; ++s, from += 16, to += kTileBytes) {
          _mm512_store_si512(to, DecodeLine(from, table));
        }
      }
    }
  }

  static Range Stream(const Matrix& m, std::size_t row) noexcept {
    return {m.weights + row * m.pitch, Smaller(kPanelRows, m.rows - row) * m.pitch};
  }
};

// Source turns the lines of kInputs inputs and 16 outputs into rows of nibbles.
template <class Source>
struct NibbleColumnPanels : Bf16Tiles {
  static void Fill(const Matrix& m, std::size_t row, std::size_t rows,
                   std::uint8_t* panel) noexcept {
    if (rows == 0) {
      for (std::size_t r = 0; r < kPanelRows; ++r) ZeroLine(r, m.columns / kStep, panel);
      return;
    }
    const __m512 values = _mm512_loadu_ps(UnsignedValues::kOf);
    const std::size_t scale_bytes = ScaleBytes(m.scale_type);
    const std::size_t stretch = Smaller(Source::kInputs, m.group);
    for (std::size_t first = 0; first < m.columns; first += Source::kInputs) {
      const std::size_t end = Smaller(first + Source::kInputs, m.columns);
      alignas(64) std::uint8_t packed[kPanelRows][Source::kInputs / 2];
      Source::Rows(m, row, first, end - first, packed);
      for (std::size_t begin = first; begin < end; begin += stretch) {
        const std::size_t group = begin / m.group;
        alignas(64) float scales[kPanelRows];
        alignas(64) float zeros[kPanelRows];
        _mm512_store_ps(
            scales, LoadScales(m.scale_type, m.scales + group * m.scale_pitch + row * scale_bytes,
                               kPanelRows));
        for (std::size_t r = 0; r < kPanelRows; ++r) zeros[r] = ZeroAt(m, group, row + r);
        for (std::size_t r = 0; r < kPanelRows; ++r) {
          const __m512 differences = _mm512_sub_ps(values, _mm512_set1_ps(zeros[r]));
          const __m512i table = PanelTable(_mm512_mul_ps(differences, _mm512_set1_ps(scales[r])));
          std::uint8_t* to = panel + begin / kStep * kTileBytes + r * kTileLine;
          for (std::size_t k = begin; k < Smaller(begin + stretch, end); k += kStep) {
            _mm512_store_si512(to, DecodeLine(packed[r] + (k - first) / 2, table));
            to += kTileBytes;
          }
        }
      }
    }
  }

  // Lines lie too far apart for a range of bytes.
  static Range Stream(const Matrix& m, std::size_t) noexcept { return {m.weights, 0}; }
};

// Double words of 16 lines and 16 outputs change places.
struct GptqRows {
  static constexpr std::size_t kInputs = 128;
  static void Rows(const Matrix& m, std::size_t row, std::size_t first, std::size_t inputs,
                   std::uint8_t (&packed)[kPanelRows][kInputs / 2]) noexcept {
    const std::uint8_t* line = m.weights + first / 8 * m.pitch + row * 4;
    __m512 v[16];
    for (std::size_t l = 0; l < 16; ++l, line += m.pitch) {
      v[l] = l < inputs / 8 ? _mm512_loadu_ps(line) : _mm512_setzero_ps();
      // The next panel's part of this line.
      _mm_prefetch(reinterpret_cast<const char*>(line) + 64, _MM_HINT_T0);
    }
    Transpose(v);
    for (std::size_t r = 0; r < kPanelRows; ++r) _mm512_store_ps(packed[r], v[r]);
  }
};

// Nibbles of eight lines and eight outputs change places in three rounds of swaps; a vector holds
// two double words of eight lines, eight lines apart.
struct AwqRows {
  static constexpr std::size_t kInputs = 64;

  template <int Bits>
  static void Swap(__m512i& a, __m512i& b, __m512i lower) noexcept {
    const __m512i from_b = _mm512_slli_epi32(b, Bits);
    const __m512i from_a = _mm512_srli_epi32(a, Bits);
    // lower ? a : from_b, and lower ? from_a : b.
    a = _mm512_ternarylogic_epi32(lower, a, from_b, 0xca);
    b = _mm512_ternarylogic_epi32(lower, from_a, b, 0xca);
  }

  static void Rows(const Matrix& m, std::size_t row, std::size_t first, std::size_t inputs,
                   std::uint8_t (&packed)[kPanelRows][kInputs / 2]) noexcept {
    const std::uint8_t* base = m.weights + first * m.pitch + row / 2;
    __m512i v[8];
    for (std::size_t l = 0; l < 8; ++l) {
      alignas(64) std::uint64_t pairs[8] = {};
      for (std::size_t b = 0; b < inputs / 8; ++b) {
        std::memcpy(&pairs[b], base + (8 * b + l) * m.pitch, sizeof pairs[b]);
      }
      v[l] = _mm512_load_si512(pairs);
    }
    const __m512i words = _mm512_set1_epi32(0x0000ffff);
    const __m512i bytes = _mm512_set1_epi32(0x00ff00ff);
    const __m512i nibbles = _mm512_set1_epi32(0x0f0f0f0f);
    for (int l = 0; l < 4; ++l) Swap<16>(v[l], v[l + 4], words);
    for (const int l : {0, 1, 4, 5}) Swap<8>(v[l], v[l + 2], bytes);
    for (const int l : {0, 2, 4, 6}) Swap<4>(v[l], v[l + 1], nibbles);
    const __m512i split = _mm512_set_epi32(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0);
    for (std::size_t i = 0; i < 8; ++i) {
      const auto output = static_cast<std::size_t>(kAwqOutputs[i]);
      const __m512i rows = _mm512_permutexvar_epi32(split, v[i]);
      _mm256_store_si256(reinterpret_cast<__m256i*>(packed[output]), _mm512_castsi512_si256(rows));
      _mm256_store_si256(reinterpret_cast<__m256i*>(packed[8 + output]),
                         _mm512_extracti64x4_epi64(rows, 1));
    }
  }
};

}  // namespace
}  // namespace ktd
