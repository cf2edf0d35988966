// AMX-BF16. Like vdpbf16ps, the tile product takes denormal inputs as zero and flushes denormal
// sums.
#include "amx.h"
#include "amx_bf16_tiles.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Bf16Amx : Bf16Tiles {
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
        _mm_prefetch(reinterpret_cast<const char*>(from + s * kTileLine) + 4096, _MM_HINT_T0);
        _mm512_store_si512(to + s * kTileBytes, _mm512_loadu_si512(from + s * kTileLine));
      }
      if (whole == steps) continue;
      const __mmask32 mask = First32(m.columns - whole * kStep);
      _mm512_store_si512(to + whole * kTileBytes,
                         _mm512_maskz_loadu_epi16(mask, from + whole * kTileLine));
    }
  }

  static Range Stream(const Matrix& m, std::size_t row) noexcept {
    return {m.weights + row * m.pitch, Smaller(kPanelRows, m.rows - row) * m.pitch};
  }
};

}  // namespace

const ExpertKernel KTD_AMX_NAME(kBf16Amx) = AmxKernel<Bf16Amx>();

}  // namespace ktd
