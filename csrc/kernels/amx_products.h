// Two panels of weights times one or two blocks of tokens, tile by tile along the inputs.
#pragma once

#include "amx.h"

namespace ktd {
namespace {

// Instructions that do nothing, behind each of a tile. Where the core's other hyperthread works for
// somebody else, as on every H100 host seen, products and loads close behind each other hold each
// other up: without a gap the pool's products took 15 % longer there, with 6 or 24 not less
// (docs/results/kernels.md).
constexpr int kGap = 12;

inline void Gap() noexcept { asm volatile(".rept %c0\n\tnop\n\t.endr" ::"i"(kGap)); }

template <int T>
inline void Load(const std::uint8_t* tile) noexcept {
  TileLoad<T>(tile, kTileLine);
  Gap();
}

struct Bf16Products {
  template <int C, int A, int B>
  static void Add() noexcept {
    TileDotBf16<C, A, B>();
    Gap();
  }
};

struct Int8Products {
  template <int C, int A, int B>
  static void Add() noexcept {
    TileDotInt8<C, A, B>();
    Gap();
  }
};

// sums = panels x blocks over steps [begin, end), at least one: (panel 0, block 0), (1, 0), (0, 1),
// (1, 1). Blocks lie token_bytes apart; `beside` is called once for each step. An operand is loaded
// for the next step as soon as this one has used it.
template <class Products, int BlockCount, class Beside>
inline void MultiplyTiles(std::size_t begin, std::size_t end, const std::uint8_t* panel0,
                          const std::uint8_t* panel1, const std::uint8_t* tokens,
                          std::size_t token_bytes, const Beside& beside, Sums (&sums)[4]) noexcept {
  constexpr bool kTwo = BlockCount == 2;
  const std::uint8_t* more = tokens + token_bytes;
  const auto at = [](const std::uint8_t* tiles, std::size_t step) noexcept {
    return tiles + step * kTileBytes;
  };
  Load<4>(at(panel0, begin));
  Load<6>(at(tokens, begin));
  TileZero<0>();
  TileZero<1>();
  if constexpr (kTwo) {
    Load<7>(at(more, begin));
    TileZero<2>();
    TileZero<3>();
  }
  Load<5>(at(panel1, begin));
  for (std::size_t next = begin + 1; next < end; ++next) {
    Products::template Add<0, 4, 6>();
    if constexpr (kTwo) Products::template Add<2, 4, 7>();
    Load<4>(at(panel0, next));
    Products::template Add<1, 5, 6>();
    Load<6>(at(tokens, next));
    if constexpr (kTwo) {
      Products::template Add<3, 5, 7>();
      Load<7>(at(more, next));
    }
    Load<5>(at(panel1, next));
    beside();
  }
  Products::template Add<0, 4, 6>();
  if constexpr (kTwo) Products::template Add<2, 4, 7>();
  Products::template Add<1, 5, 6>();
  if constexpr (kTwo) Products::template Add<3, 5, 7>();
  beside();
  TileStore<0>(&sums[0], kTileLine);
  TileStore<1>(&sums[1], kTileLine);
  if constexpr (kTwo) {
    TileStore<2>(&sums[2], kTileLine);
    TileStore<3>(&sums[3], kTileLine);
  }
}

}  // namespace
}  // namespace ktd
