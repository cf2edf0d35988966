// Rows of one-byte weights against prepared tokens, over a codec: how one ISA multiplies one kind
// of weights. A codec is a type with
//
//   Acc, Weights                   accumulator; kStep weights ready to be multiplied
//   kStep                          a divisor of 128
//   kValueBytes                    of a prepared value
//   Zero(), Load(p), LoadTail(p, n < kStep: the rest counts as zero)
//   Madd(acc, w, x)                x: kStep prepared values in memory, on a boundary of 64 bytes
//   Activate(...)                  see gemv.h
//
// ByteRows, for one scale per row, adds Prepare(x, columns, values), which writes values up to a
// multiple of 128 inputs, zero behind the last, and returns the TokenScale; Sum(acc, token), a
// row's sum. BlockRows, for scales per 128 x 128 block, adds PrepareGroup(x, n <= 128, values),
// which writes 128 values and returns their scale; Total, ZeroTotal(), Scaled(total, acc, factor) =
// total
// + acc * factor, SumTotal(total).
#pragma once

#include "gemv.h"

namespace ktd {
namespace {

// What lies behind a prepared token's values; of scales per block there are as many as blocks.
struct TokenScale {
  float scale;
  std::int32_t sum;  // of the values, where the codec needs it
};

constexpr std::size_t ValuesBytes(std::size_t columns, std::size_t value_bytes) noexcept {
  return RoundUp(columns, kFp8Block) * value_bytes;
}

inline float RowScale(const Matrix& m, std::size_t row) noexcept {
  return *reinterpret_cast<const float*>(m.scales + row * m.scale_pitch);
}
inline const float* BlockScales(const Matrix& m, std::size_t row) noexcept {
  return reinterpret_cast<const float*>(m.scales + row / kFp8Block * m.scale_pitch);
}

// acc[t][r] += the products of inputs [begin, end), begin a multiple of kStep. Weights are
// prefetched into L2: into L1 there are too few lines in flight (on a Zen 4 core, four rows at a
// time, int8: 9 GB/s into L1, 15 into L2; one row at a time, which hardware prefetches too, 28 and
// 31, as fast as a plain read loop). So a tile for one token has one row where the arithmetic can
// keep up with that.
template <class C, int R, int N>
[[gnu::always_inline]] inline void AddProducts(const std::uint8_t* const (&rows)[R],
                                               const std::uint8_t* const (&x)[N], std::size_t begin,
                                               std::size_t end, std::ptrdiff_t ahead,
                                               typename C::Acc (&acc)[N][R]) noexcept {
  std::size_t i = begin;
  for (; i + C::kStep <= end; i += C::kStep) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (ahead != 0 && i % 64 == 0) {
        __builtin_prefetch(
            reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(rows[r] + i) +
                                          static_cast<std::uintptr_t>(ahead)),
            0, 2);
      }
      const typename C::Weights w = C::Load(rows[r] + i);
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) acc[t][r] = C::Madd(acc[t][r], w, x[t] + i * C::kValueBytes);
    }
  }
  if (i == end) return;
  for (int r = 0; r < R; ++r) {
    const typename C::Weights w = C::LoadTail(rows[r] + i, end - i);
    for (int t = 0; t < N; ++t) acc[t][r] = C::Madd(acc[t][r], w, x[t] + i * C::kValueBytes);
  }
}

// What both kinds of rows have in common.
template <class C, int RowsOne, int RowsMany, int Tokens>
struct AnyRows {
  static constexpr std::size_t kUnit = 8;
  static constexpr bool kRowsFollow = true;
  static constexpr int kRowsOne = RowsOne;
  static constexpr int kRowsMany = RowsMany;
  static constexpr int kTokens = Tokens;

  static const std::uint8_t* Address(const Matrix& m, std::size_t row) noexcept {
    return m.weights + row * m.pitch;
  }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    C::Activate(activation, gate, up, n, act);
  }
};

template <class C, int RowsOne, int RowsMany, int Tokens>
struct ByteRows : AnyRows<C, RowsOne, RowsMany, Tokens> {
  using Codec = C;

  static constexpr std::size_t PackedBytes(std::size_t columns) noexcept {
    return ValuesBytes(columns, C::kValueBytes) + 64;
  }
  static void Pack(const Matrix& m, const Bf16* x, std::uint8_t* packed) noexcept {
    const TokenScale token = C::Prepare(x, m.columns, packed);
    *reinterpret_cast<TokenScale*>(packed + ValuesBytes(m.columns, C::kValueBytes)) = token;
  }
  static const TokenScale& Of(const Matrix& m, const std::uint8_t* token) noexcept {
    return *reinterpret_cast<const TokenScale*>(token + ValuesBytes(m.columns, C::kValueBytes));
  }

  template <int R, int N>
  static void Dot(const Matrix& m, std::size_t row, const std::uint8_t* const (&tokens)[N],
                  std::ptrdiff_t ahead, float (&sums)[N][R]) noexcept {
    const std::uint8_t* rows[R];
    typename C::Acc acc[N][R];
    for (int r = 0; r < R; ++r) {
      rows[r] = ByteRows::Address(m, row + static_cast<std::size_t>(r));
      for (int t = 0; t < N; ++t) acc[t][r] = C::Zero();
    }
    AddProducts<C>(rows, tokens, 0, m.columns, ahead, acc);
    for (int t = 0; t < N; ++t) {
      const TokenScale& token = Of(m, tokens[t]);
      for (int r = 0; r < R; ++r) {
        const float scale = token.scale * RowScale(m, row + static_cast<std::size_t>(r));
        sums[t][r] = C::Sum(acc[t][r], token) * scale;
      }
    }
  }
};

// A tile's rows never lie under two blocks' scales: it begins at a multiple of its height.
template <class C, int RowsOne, int RowsMany, int Tokens>
struct BlockRows : AnyRows<C, RowsOne, RowsMany, Tokens> {
  using Codec = C;

  static constexpr std::size_t PackedBytes(std::size_t columns) noexcept {
    const std::size_t blocks = (columns + kFp8Block - 1) / kFp8Block;
    return ValuesBytes(columns, C::kValueBytes) + RoundUp(blocks * sizeof(float), 64);
  }
  static void Pack(const Matrix& m, const Bf16* x, std::uint8_t* packed) noexcept {
    float* scales = reinterpret_cast<float*>(packed + ValuesBytes(m.columns, C::kValueBytes));
    for (std::size_t i = 0; i < m.columns; i += kFp8Block) {
      scales[i / kFp8Block] =
          C::PrepareGroup(x + i, Smaller(kFp8Block, m.columns - i), packed + i * C::kValueBytes);
    }
  }
  static const float* Of(const Matrix& m, const std::uint8_t* token) noexcept {
    return reinterpret_cast<const float*>(token + ValuesBytes(m.columns, C::kValueBytes));
  }

  template <int R, int N>
  static void Dot(const Matrix& m, std::size_t row, const std::uint8_t* const (&tokens)[N],
                  std::ptrdiff_t ahead, float (&sums)[N][R]) noexcept {
    const std::uint8_t* rows[R];
    const float* of[N];
    typename C::Total total[N][R];
    for (int r = 0; r < R; ++r) {
      rows[r] = BlockRows::Address(m, row + static_cast<std::size_t>(r));
      for (int t = 0; t < N; ++t) total[t][r] = C::ZeroTotal();
    }
    for (int t = 0; t < N; ++t) of[t] = Of(m, tokens[t]);
    const float* scales = BlockScales(m, row);
    const auto block = [&](std::size_t b, std::size_t end) noexcept {
      typename C::Acc acc[N][R];
      for (int t = 0; t < N; ++t) {
        for (int r = 0; r < R; ++r) acc[t][r] = C::Zero();
      }
      AddProducts<C>(rows, tokens, b * kFp8Block, end, ahead, acc);
      for (int t = 0; t < N; ++t) {
        const float factor = scales[b] * of[t][b];
        for (int r = 0; r < R; ++r) total[t][r] = C::Scaled(total[t][r], acc[t][r], factor);
      }
    };
    const std::size_t whole = m.columns / kFp8Block;
    for (std::size_t b = 0; b < whole; ++b) block(b, (b + 1) * kFp8Block);
    if (whole * kFp8Block < m.columns) block(whole, m.columns);
    for (int t = 0; t < N; ++t) {
      for (int r = 0; r < R; ++r) sums[t][r] = C::SumTotal(total[t][r]);
    }
  }
};

}  // namespace
}  // namespace ktd
