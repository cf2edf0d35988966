// What the AMX kernels with bf16 tiles share: tokens as B tiles, and the product itself.
#pragma once

#include "amx.h"
#include "amx_products.h"

// The emulated build has names of its own beside the real ones.
#ifdef KTD_AMX_EMULATED
#define KTD_AMX_NAME(name) name##Emulated
#else
#define KTD_AMX_NAME(name) name
#endif

namespace ktd {
namespace {

struct Bf16Tiles {
  static constexpr std::size_t kStep = 32;
  static constexpr bool kRepacks = false;

  static constexpr std::size_t TokensBytes(std::size_t columns) noexcept {
    return Blocks(columns, kStep) * kTileBytes;
  }

  // Line j of a tile holds inputs 2j and 2j + 1 of 16 tokens: the tokens' lines, transposed as 16 x
  // 16 double words.
  static void Pack(const Matrix& m, const Bf16* const* x, std::size_t count,
                   std::uint8_t* tokens) noexcept {
    const std::size_t steps = Blocks(m.columns, kStep);
    for (std::size_t s = 0; s < steps; ++s) {
      const std::size_t left = m.columns - s * kStep;
      const __mmask32 mask = left >= kStep ? 0xffffffffu : First32(left);
      __m512 v[16];
      for (std::size_t t = 0; t < kTokenBlock; ++t) {
        v[t] = t < count ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, x[t] + s * kStep))
                         : _mm512_setzero_ps();
      }
      Transpose(v);
      for (std::size_t j = 0; j < kTileRows; ++j) {
        _mm512_store_ps(tokens + s * kTileBytes + j * kTileLine, v[j]);
      }
    }
  }

  // MultiplyTiles over all inputs. The panels hold 16 rows each from row0 of m0 and row1 of m1.
  // Formats whose scales change along the inputs have a Multiply of their own.
  template <int BlockCount, class Beside>
  static void Multiply(const Matrix& m0, const Matrix&, std::size_t, std::size_t,
                       const std::uint8_t* panel0, const std::uint8_t* panel1,
                       const std::uint8_t* tokens, std::size_t token_bytes, const Beside& beside,
                       Sums (&sums)[4]) noexcept {
    MultiplySteps<BlockCount>(0, Blocks(m0.columns, kStep), panel0, panel1, tokens, token_bytes,
                              beside, sums);
  }

  // The same over steps [begin, end).
  template <int BlockCount, class Beside>
  static void MultiplySteps(std::size_t begin, std::size_t end, const std::uint8_t* panel0,
                            const std::uint8_t* panel1, const std::uint8_t* tokens,
                            std::size_t token_bytes, const Beside& beside,
                            Sums (&sums)[4]) noexcept {
    MultiplyTiles<Bf16Products, BlockCount>(begin, end, panel0, panel1, tokens, token_bytes, beside,
                                            sums);
  }
};

}  // namespace
}  // namespace ktd
