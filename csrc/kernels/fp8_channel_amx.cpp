// E4M3 values as bf16 on AMX-BF16: exact, and never denormal there.
#include "amx_scales.h"
#include "avx512_e4m3.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Fp8ChannelAmx : Bf16Tiles {
  static constexpr bool kRepacks = true;

  static constexpr std::size_t TilesBytes(std::size_t columns) noexcept {
    return Blocks(columns, kStep) * kTileBytes;
  }
  static constexpr std::size_t TokensBytes(std::size_t columns) noexcept {
    return TilesBytes(columns) + kTileLine;
  }
  static void Fill(const Matrix& m, std::size_t row, std::size_t rows,
                   std::uint8_t* panel) noexcept {
    FillFromBytes(m, row, rows, panel, E4m3ToBf16);
  }
  static Range Stream(const Matrix& m, std::size_t row) noexcept { return StreamOf(m, row); }

  static void Pack(const Matrix& m, const Bf16* const* x, std::size_t count,
                   std::uint8_t* tokens) noexcept {
    Bf16Tiles::Pack(m, x, count, tokens);
    Repack(m, tokens, count, tokens);
  }
  static void Repack(const Matrix& m, const std::uint8_t* act, std::size_t,
                     std::uint8_t* tokens) noexcept {
    const std::size_t lines = Blocks(m.columns, kStep) * kTileRows;
    const SixteenQuantisers of = Quantisers<TokenQuantiser>(LargestOfLines<true>(act, lines));
    QuantiseLines(act, lines, of.inverse, tokens);
    _mm512_store_ps(tokens + TilesBytes(m.columns), of.scale);
  }

  template <int BlockCount, class Beside>
  static void Multiply(const Matrix& m0, const Matrix& m1, std::size_t row0, std::size_t row1,
                       const std::uint8_t* panel0, const std::uint8_t* panel1,
                       const std::uint8_t* tokens, std::size_t token_bytes, const Beside& beside,
                       Sums (&sums)[4]) noexcept {
    Bf16Tiles::Multiply<BlockCount>(m0, m1, row0, row1, panel0, panel1, tokens, token_bytes, beside,
                                    sums);
    for (std::size_t b = 0; b < BlockCount; ++b) {
      const __m512 scales = _mm512_load_ps(tokens + b * token_bytes + TilesBytes(m0.columns));
      ScaleSums(m0, row0, scales, sums[2 * b]);
      ScaleSums(m1, row1, scales, sums[2 * b + 1]);
    }
  }
};

}  // namespace

const ExpertKernel KTD_AMX_NAME(kFp8ChannelAmx) = AmxKernel<Fp8ChannelAmx>();

}  // namespace ktd
