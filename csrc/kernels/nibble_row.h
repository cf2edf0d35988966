// Rows of nibbles (kInt4, kMxfp4) for a handful of tokens, over an ISA: a type with
//   Int, Float, kLanes, kBlock     a vector holds kBlock = 8 * kLanes nibbles, lane i the inputs
//                                  8 i to 8 i + 7, so that groups of 32 are four lanes each
//   kRowsOne, kRowsMany, kTokens
//   kPackedBlock, PackBlock        bytes of kBlock prepared inputs; prepares n of them, then zeros
//   Table<Values>                  what the nibbles mean
//   Load(p, n)                     n nibbles (a multiple of 32), the others zero
//   Multiply<N>(w, table, x, acc)  acc[t] = the lanes' products with the block x[t]
//   Scales(type, p, n)             n <= kLanes scales as float32, then something finite
//   Spread(scales, index), SpreadIndex(b, shift)   lane i takes scale (i / 4 + b) >> shift
//   Zero(), Fma(a, b, c), Sum(v), Activate(...)
//
// The products of a group are added up first and the group's scale multiplies the sum, in float32.
#pragma once

#include "gemv.h"
#include "nibble.h"

namespace ktd {
namespace {

// Groups are of 32, 64 or 128 inputs.
constexpr unsigned GroupShift(std::size_t group) noexcept {
  return group == 32 ? 0 : group == 64 ? 1 : 2;
}

template <class Isa, class Values>
struct NibbleRows {
  static constexpr std::size_t kUnit = 8;
  static constexpr bool kRowsFollow = true;
  static constexpr int kRowsOne = Isa::kRowsOne;
  static constexpr int kRowsMany = Isa::kRowsMany;
  static constexpr int kTokens = Isa::kTokens;
  static constexpr std::size_t kBlocks = 4;  // a vector of scales is enough for so many

  static constexpr std::size_t PackedBytes(std::size_t columns) noexcept {
    return RoundUp(columns, Isa::kBlock) / Isa::kBlock * Isa::kPackedBlock;
  }
  static void Pack(const Matrix& m, const Bf16* x, std::uint8_t* packed) noexcept {
    for (std::size_t k = 0; k < m.columns; k += Isa::kBlock, packed += Isa::kPackedBlock) {
      Isa::PackBlock(x + k, Smaller(Isa::kBlock, m.columns - k), packed);
    }
  }
  static const std::uint8_t* Address(const Matrix& m, std::size_t row) noexcept {
    return AddressOf(m, row);
  }

  template <int R, int N>
  static void Dot(const Matrix& m, std::size_t row, const std::uint8_t* const (&tokens)[N],
                  std::ptrdiff_t ahead, float (&sums)[N][R]) noexcept {
    using Float = typename Isa::Float;
    constexpr std::size_t kChunk = kBlocks * Isa::kBlock;
    const typename Isa::template Table<Values> table;
    const std::uint8_t* rows[R];
    const std::uint8_t* scale_rows[R];
    const std::uint8_t* x[N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      rows[r] = Address(m, row + static_cast<std::size_t>(r));
      scale_rows[r] = m.scales + (row + static_cast<std::size_t>(r)) * m.scale_pitch;
    }
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) x[t] = tokens[t];
    const unsigned shift = GroupShift(m.group);
    typename Isa::Int index[kBlocks];
    for (std::size_t b = 0; b < kBlocks; ++b) {
      index[b] = Isa::SpreadIndex(static_cast<int>(b * Isa::kBlock / 32), shift);
    }
    const std::size_t group_scales = ScaleBytes(m.scale_type);
    Float total[N][R];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) total[t][r] = Isa::Zero();
    }
    for (std::size_t first = 0; first < m.columns; first += kChunk) {
      const std::size_t inputs = Smaller(kChunk, m.columns - first);
      const std::size_t scale = first / m.group;
      Float scales[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        scales[r] = Isa::Scales(m.scale_type, scale_rows[r] + scale * group_scales,
                                (inputs + m.group - 1) / m.group);
      }
      for (std::size_t b = 0; b * Isa::kBlock < inputs; ++b) {
        const std::size_t n = Smaller(Isa::kBlock, inputs - b * Isa::kBlock);
        const std::size_t at = (first + b * Isa::kBlock) / 2;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          if (ahead != 0) {
            __builtin_prefetch(
                reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(rows[r] + at) +
                                              static_cast<std::uintptr_t>(ahead)),
                0, 2);
          }
          // Inputs are operands in memory for every row: kept from one row to the next they would
          // be spilled.
          asm volatile("" ::: "memory");
          Float acc[N];
          Isa::template Multiply<N>(Isa::Load(rows[r] + at, n), table, x, acc);
          const Float spread = Isa::Spread(scales[r], index[b]);
#pragma GCC unroll 8
          for (int t = 0; t < N; ++t) total[t][r] = Isa::Fma(acc[t], spread, total[t][r]);
        }
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) x[t] += Isa::kPackedBlock;
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[t][r] = Isa::Sum(total[t][r]);
    }
  }

  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    Isa::Activate(activation, gate, up, n, act);
  }
};

}  // namespace
}  // namespace ktd
