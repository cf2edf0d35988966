// AMX-INT8: weights as they are, activations in int8, sums in int32.
#include "amx_scales.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Int8Amx {
  static constexpr std::size_t kStep = 64;
  static constexpr bool kRepacks = true;

  static constexpr std::size_t TilesBytes(std::size_t columns) noexcept {
    return Blocks(columns, kStep) * kTileBytes;
  }
  static constexpr std::size_t TokensBytes(std::size_t columns) noexcept {
    return TilesBytes(columns) + kTileLine;
  }

  static void Fill(const Matrix& m, std::size_t row, std::size_t rows,
                   std::uint8_t* panel) noexcept {
    const std::size_t steps = Blocks(m.columns, kStep);
    const std::size_t whole = m.columns / kStep;
    for (std::size_t r = 0; r < kPanelRows; ++r) {
      std::uint8_t* to = panel + r * kTileLine;
      if (r >= rows) {
        for (std::size_t s = 0; s < steps; ++s) {
          _mm512_store_si512(to + s * kTileBytes, _mm512_setzero_si512());
        }
        continue;
      }
      const std::uint8_t* from = m.weights + (row + r) * m.pitch;
      for (std::size_t s = 0; s < whole; ++s) {
        _mm_prefetch(reinterpret_cast<const char*>(from + s * kStep) + 4096, _MM_HINT_T0);
        _mm512_store_si512(to + s * kTileBytes, _mm512_loadu_si512(from + s * kStep));
      }
      if (whole == steps) continue;
      const __mmask64 mask = (__mmask64{1} << (m.columns - whole * kStep)) - 1;
      _mm512_store_si512(to + whole * kTileBytes,
                         _mm512_maskz_loadu_epi8(mask, from + whole * kStep));
    }
  }
  static Range Stream(const Matrix& m, std::size_t row) noexcept { return StreamOf(m, row); }

  // Line j of a tile holds inputs 4j to 4j + 3 of 16 tokens: what two lines of bf16 pairs hold.
  // `pairs` is 32 of those, or `lines` fewer at the end.
  static void QuantiseTile(const std::uint8_t* pairs, std::size_t lines, __m512 inverse,
                           std::uint8_t* tile) noexcept {
    const auto rounded = [&](std::size_t line, bool odd) noexcept {
      if (line >= lines) return _mm512_setzero_si512();
      const __m512i pair = _mm512_load_si512(pairs + line * kTileLine);
      const __m512 value = odd ? OddOf(pair) : EvenOf(pair);
      // Where the token's scale is NaN a product may be NaN here; it counts as 0.
      const __m512 product = _mm512_mul_ps(value, inverse);
      const __mmask16 number = _mm512_cmp_ps_mask(product, product, _CMP_ORD_Q);
      return _mm512_and_si512(RoundAway(_mm512_maskz_mov_ps(number, product)),
                              _mm512_set1_epi32(0xff));
    };
    for (std::size_t j = 0; j < kTileRows; ++j) {
      const __m512i first = rounded(2 * j, false);
      const __m512i second = _mm512_slli_epi32(rounded(2 * j, true), 8);
      const __m512i third = _mm512_slli_epi32(rounded(2 * j + 1, false), 16);
      const __m512i fourth = _mm512_slli_epi32(rounded(2 * j + 1, true), 24);
      _mm512_store_si512(tile + j * kTileLine, _mm512_or_si512(_mm512_or_si512(first, second),
                                                               _mm512_or_si512(third, fourth)));
    }
  }

  static void Pack(const Matrix& m, const Bf16* const* x, std::size_t count,
                   std::uint8_t* tokens) noexcept {
    alignas(64) float largest[kTokenBlock] = {};
    for (std::size_t t = 0; t < count; ++t) largest[t] = LargestBf16<false>(x[t], m.columns);
    const SixteenQuantisers of = Quantisers<Int8Quantiser>(_mm512_load_ps(largest));
    Matrix part = m;
    for (std::size_t s = 0; s < Blocks(m.columns, kStep); ++s) {
      alignas(64) std::uint8_t pairs[2 * kTileBytes];
      const Bf16* from[kTokenBlock];
      for (std::size_t t = 0; t < count; ++t) from[t] = x[t] + s * kStep;
      part.columns = Smaller(kStep, m.columns - s * kStep);
      Bf16Tiles::Pack(part, from, count, pairs);
      QuantiseTile(pairs, Blocks(part.columns, 32) * kTileRows, of.inverse,
                   tokens + s * kTileBytes);
    }
    _mm512_store_ps(tokens + TilesBytes(m.columns), of.scale);
  }
  static void Repack(const Matrix& m, const std::uint8_t* act, std::size_t,
                     std::uint8_t* tokens) noexcept {
    const std::size_t lines = Blocks(m.columns, 32) * kTileRows;
    const SixteenQuantisers of = Quantisers<Int8Quantiser>(LargestOfLines<false>(act, lines));
    for (std::size_t s = 0; s < Blocks(m.columns, kStep); ++s) {
      const std::size_t line = s * 2 * kTileRows;
      QuantiseTile(act + line * kTileLine, Smaller(2 * kTileRows, lines - line), of.inverse,
                   tokens + s * kTileBytes);
    }
    _mm512_store_ps(tokens + TilesBytes(m.columns), of.scale);
  }

  template <int BlockCount, class Beside>
  static void Multiply(const Matrix& m0, const Matrix& m1, std::size_t row0, std::size_t row1,
                       const std::uint8_t* panel0, const std::uint8_t* panel1,
                       const std::uint8_t* tokens, std::size_t token_bytes, const Beside& beside,
                       Sums (&sums)[4]) noexcept {
    const std::size_t steps = Blocks(m0.columns, kStep);
    MultiplyTiles<Int8Products, BlockCount>(0, steps, panel0, panel1, tokens, token_bytes, beside,
                                            sums);
    for (std::size_t b = 0; b < BlockCount; ++b) {
      const __m512 scales = _mm512_load_ps(tokens + b * token_bytes + TilesBytes(m0.columns));
      ScaleIntegers(m0, row0, scales, sums[2 * b]);
      ScaleIntegers(m1, row1, scales, sums[2 * b + 1]);
    }
  }

  static void ScaleIntegers(const Matrix& m, std::size_t row, __m512 tokens, Sums& sums) noexcept {
    for (std::size_t r = 0; r < kPanelRows; ++r) {
      const __m512i integers = _mm512_load_si512(sums.at[r]);
      _mm512_store_ps(sums.at[r], _mm512_cvtepi32_ps(integers));
    }
    ScaleSums(m, row, tokens, sums);
  }
};

}  // namespace

const ExpertKernel KTD_AMX_NAME(kInt8Amx) = AmxKernel<Int8Amx>();

}  // namespace ktd
