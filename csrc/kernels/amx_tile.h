// The eight tiles of AMX, 16 rows of 64 bytes each, and what is done with them. With
// KTD_AMX_EMULATED the same operations in plain C++, so that everything around them is tested on
// hosts without AMX; the products' order of additions is that of the instruction's documentation
// (Intel SDM volume 2, TDPBF16PS, TDPBSSD).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ktd {
namespace {

constexpr std::size_t kTileRows = 16;
constexpr std::size_t kTileLine = 64;  // bytes
constexpr std::size_t kTileBytes = kTileRows * kTileLine;

#ifdef KTD_AMX_EMULATED

struct EmulatedTile {
  alignas(64) std::uint8_t rows[kTileRows][kTileLine];
};
inline thread_local EmulatedTile emulated_tiles[8];

struct TileUse {};

template <int T>
inline void TileZero() noexcept {
  std::memset(&emulated_tiles[T], 0, sizeof(EmulatedTile));
}
template <int T>
inline void TileLoad(const void* from, std::size_t stride) noexcept {
  for (std::size_t r = 0; r < kTileRows; ++r) {
    std::memcpy(emulated_tiles[T].rows[r], static_cast<const char*>(from) + r * stride, kTileLine);
  }
}
template <int T>
inline void TileStore(void* to, std::size_t stride) noexcept {
  for (std::size_t r = 0; r < kTileRows; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, emulated_tiles[T].rows[r], kTileLine);
  }
}
inline float EmulatedWiden(std::uint16_t value) noexcept {
  // Denormals count as zero.
  const std::uint32_t bits =
      (value & 0x7f80u) == 0 ? (value & 0x8000u) << 16 : static_cast<std::uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
template <int C, int A, int B>
inline void TileDotBf16() noexcept {
  for (std::size_t m = 0; m < kTileRows; ++m) {
    float c[16];
    std::uint16_t a[32];
    std::memcpy(c, emulated_tiles[C].rows[m], kTileLine);
    std::memcpy(a, emulated_tiles[A].rows[m], kTileLine);
    for (std::size_t k = 0; k < 16; ++k) {
      std::uint16_t b[32];
      std::memcpy(b, emulated_tiles[B].rows[k], kTileLine);
      for (std::size_t n = 0; n < 16; ++n) {
        c[n] += EmulatedWiden(a[2 * k]) * EmulatedWiden(b[2 * n]);
        c[n] += EmulatedWiden(a[2 * k + 1]) * EmulatedWiden(b[2 * n + 1]);
      }
    }
    std::memcpy(emulated_tiles[C].rows[m], c, kTileLine);
  }
}
template <int C, int A, int B>
inline void TileDotInt8() noexcept {
  for (std::size_t m = 0; m < kTileRows; ++m) {
    std::int32_t c[16];
    std::int8_t a[64];
    std::memcpy(c, emulated_tiles[C].rows[m], kTileLine);
    std::memcpy(a, emulated_tiles[A].rows[m], kTileLine);
    for (std::size_t k = 0; k < 16; ++k) {
      std::int8_t b[64];
      std::memcpy(b, emulated_tiles[B].rows[k], kTileLine);
      for (std::size_t n = 0; n < 16; ++n) {
        for (std::size_t i = 0; i < 4; ++i) c[n] += a[4 * k + i] * b[4 * n + i];
      }
    }
    std::memcpy(emulated_tiles[C].rows[m], c, kTileLine);
  }
}

#else

// Tiles are configured while one of these lives. Releasing them spares the kernel 8 KiB at every
// context switch.
struct TileUse {
  TileUse() noexcept {
    struct alignas(64) {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t line_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.line_bytes[tile] = kTileLine;
      config.rows[tile] = kTileRows;
    }
    // Not the intrinsic: GCC's claims to read eight bytes, and the rest was left out before it.
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileUse() { _tile_release(); }
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;
};

// Written out, since the compilers' intrinsics are macros that want the tile's number as a literal.
template <int T>
inline void TileZero() noexcept {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void TileLoad(const void* from, std::size_t stride) noexcept {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
}
template <int T>
inline void TileStore(void* to, std::size_t stride) noexcept {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
}
template <int C, int A, int B>
inline void TileDotBf16() noexcept {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void TileDotInt8() noexcept {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
}  // namespace ktd
