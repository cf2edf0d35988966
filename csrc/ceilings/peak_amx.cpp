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
constexpr int kChains = 6;  // latency 52, one every 16 cycles; two tiles are the operands
constexpr double kRows = 16;

// Sets the tiles up: six sums at zero, two operands full of `value`.
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
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_loadd(6, operand, 64);
  _tile_loadd(7, operand, 64);
}

void RunBf16(std::uint64_t rounds) noexcept {
  Begin(0x3d803d80);  // 1/16, twice
  for (std::uint64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
}

void RunInt8(std::uint64_t rounds) noexcept {
  Begin(0x5d5d5d5d);
  for (std::uint64_t round = 0; round < rounds; ++round) {
    _tile_dpbssd(0, 6, 7);
    _tile_dpbssd(1, 6, 7);
    _tile_dpbssd(2, 6, 7);
    _tile_dpbssd(3, 6, 7);
    _tile_dpbssd(4, 6, 7);
    _tile_dpbssd(5, 6, 7);
  }
  _tile_release();
}

}  // namespace

// A tile product is 16 x 16 sums of 32 (bf16) or 64 (int8) products each.
const PeakLoop kPeakAmxBf16{"amx_bf16", kAmxTile | kAmxBf16, kChains * kRows * kRows * 32 * 2.0,
                            1000, &RunBf16};
const PeakLoop kPeakAmxInt8{"amx_int8", kAmxTile | kAmxInt8, kChains * kRows * kRows * 64 * 2.0,
                            1000, &RunInt8};

}  // namespace ktd
