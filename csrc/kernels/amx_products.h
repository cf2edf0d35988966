// Two panels of weights times one or two blocks of tokens, tile by tile along the inputs.
#pragma once

#include "amx.h"

namespace ktd {
namespace {

struct Bf16Products {
  template <int C, int A, int B>
  static void Add() noexcept {
    TileDotBf16<C, A, B>();
  }
};

struct Int8Products {
  template <int C, int A, int B>
  static void Add() noexcept {
    TileDotInt8<C, A, B>();
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
  TileLoad<4>(at(panel0, begin), kTileLine);
  TileLoad<6>(at(tokens, begin), kTileLine);
  TileZero<0>();
  TileZero<1>();
  if constexpr (kTwo) {
    TileLoad<7>(at(more, begin), kTileLine);
    TileZero<2>();
    TileZero<3>();
  }
  TileLoad<5>(at(panel1, begin), kTileLine);
  for (std::size_t next = begin + 1; next < end; ++next) {
    Products::template Add<0, 4, 6>();
    if constexpr (kTwo) Products::template Add<2, 4, 7>();
    TileLoad<4>(at(panel0, next), kTileLine);
    Products::template Add<1, 5, 6>();
    TileLoad<6>(at(tokens, next), kTileLine);
    if constexpr (kTwo) {
      Products::template Add<3, 5, 7>();
      TileLoad<7>(at(more, next), kTileLine);
    }
    TileLoad<5>(at(panel1, next), kTileLine);
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
