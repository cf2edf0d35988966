#include <immintrin.h>

#include "peak_loop.h"

namespace ktd {
namespace {

// Intel SDM volume 1, 18.3: palette 1, and for each tile its bytes a row and its rows.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

constexpr int kTiles = 8;
// Of a round, all into one tile: the next product may follow 16 cycles behind, row by row. With six
// sums in turn a core whose other hyperthread works for another guest makes half as many (on H100
// hosts 32 cycles of the time stamp counter for each, with one sum 16).
constexpr int kProducts = 6;
constexpr double kRows = 16;

// Sets the tiles up: the sums at zero, two operands full of `value`.
void Begin(std::uint32_t value) noexcept {
  TileConfig config;
  for (int tile = 0; tile < kTiles; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  alignas(64) std::uint32_t operand[16 * 16];
  for (std::uint32_t& word : operand) word = value;
  // GCC's intrinsics do not say that they read all of this.
  __asm__ volatile("" : : "r"(&config), "r"(operand) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_loadd(6, operand, 64);
  _tile_loadd(7, operand, 64);
}

void RunBf16(std::uint64_t rounds) noexcept {
  Begin(0x3d803d80);  // 1/16, twice
  for (std::uint64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(0, 6, 7);
  }
  _tile_release();
}

void RunInt8(std::uint64_t rounds) noexcept {
  Begin(0x5d5d5d5d);
  for (std::uint64_t round = 0; round < rounds; ++round) {
    _tile_dpbssd(0, 6, 7);
    _tile_dpbssd(0, 6, 7);
    _tile_dpbssd(0, 6, 7);
    _tile_dpbssd(0, 6, 7);
    _tile_dpbssd(0, 6, 7);
    _tile_dpbssd(0, 6, 7);
  }
  _tile_release();
}

}  // namespace

// A tile product is 16 x 16 sums of 32 (bf16) or 64 (int8) products each.
const PeakLoop kPeakAmxBf16{"amx_bf16", kAmxTile | kAmxBf16, kProducts * kRows * kRows * 32 * 2.0,
                            1000, &RunBf16};
const PeakLoop kPeakAmxInt8{"amx_int8", kAmxTile | kAmxInt8, kProducts * kRows * kRows * 64 * 2.0,
                            1000, &RunInt8};

}  // namespace ktd
