// E4M3 values as bf16 on AMX-BF16: exact, and never denormal there. Every 128 inputs the tiles'
// sums are scaled and added to the total in float32.
#include "amx_scales.h"
#include "avx512_e4m3.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

constexpr std::size_t kBlockSteps = kFp8Block / 32;
constexpr std::size_t kBlockLines = kBlockSteps * kTileRows;

struct Fp8BlockAmx : Bf16Tiles {
  static constexpr bool kRepacks = true;

  static constexpr std::size_t TilesBytes(std::size_t columns) noexcept {
    return Blocks(columns, kStep) * kTileBytes;
  }
  static constexpr std::size_t TokensBytes(std::size_t columns) noexcept {
    return TilesBytes(columns) + Blocks(columns, kFp8Block) * kTileLine;
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
    std::uint8_t* scales = tokens + TilesBytes(m.columns);
    for (std::size_t l = 0; l < lines; l += kBlockLines, scales += kTileLine) {
      const std::size_t here = Smaller(kBlockLines, lines - l);
      const std::uint8_t* from = act + l * kTileLine;
      const SixteenQuantisers of = Quantisers<GroupQuantiser>(LargestOfLines<true>(from, here));
      QuantiseLines(from, here, of.inverse, tokens + l * kTileLine);
      _mm512_store_ps(scales, of.scale);
    }
  }

  static float BlockScale(const Matrix& m, std::size_t row, std::size_t block) noexcept {
    const std::size_t inside = Smaller(row, m.rows - 1);  // a panel without rows has zeros to scale
    const std::uint8_t* scales = m.scales + inside / kFp8Block * m.scale_pitch;
    return reinterpret_cast<const float*>(scales)[block];
  }

  static void Add(const Sums& part, float scale, const std::uint8_t* token_scales, bool first,
                  Sums& total) noexcept {
    const __m512 factor = _mm512_mul_ps(_mm512_load_ps(token_scales), _mm512_set1_ps(scale));
    for (std::size_t r = 0; r < kPanelRows; ++r) {
      const __m512 before = first ? _mm512_setzero_ps() : _mm512_load_ps(total.at[r]);
      _mm512_store_ps(total.at[r], _mm512_fmadd_ps(_mm512_load_ps(part.at[r]), factor, before));
    }
  }

  template <int BlockCount, class Beside>
  static void Multiply(const Matrix& m0, const Matrix& m1, std::size_t row0, std::size_t row1,
                       const std::uint8_t* panel0, const std::uint8_t* panel1,
                       const std::uint8_t* tokens, std::size_t token_bytes, const Beside& beside,
                       Sums (&sums)[4]) noexcept {
    const std::size_t steps = Blocks(m0.columns, kStep);
    const std::uint8_t* scales = tokens + TilesBytes(m0.columns);
    Sums part[4];
    for (std::size_t begin = 0, block = 0; begin < steps; begin += kBlockSteps, ++block) {
      MultiplySteps<BlockCount>(begin, Smaller(begin + kBlockSteps, steps), panel0, panel1, tokens,
                                token_bytes, beside, part);
      const float scale0 = BlockScale(m0, row0, block);
      const float scale1 = BlockScale(m1, row1, block);
      for (std::size_t b = 0; b < BlockCount; ++b) {
        const std::uint8_t* of = scales + b * token_bytes + block * kTileLine;
        Add(part[2 * b], scale0, of, block == 0, sums[2 * b]);
        Add(part[2 * b + 1], scale1, of, block == 0, sums[2 * b + 1]);
      }
    }
  }
};

}  // namespace

const ExpertKernel KTD_AMX_NAME(kFp8BlockAmx) = AmxKernel<Fp8BlockAmx>();

}  // namespace ktd
