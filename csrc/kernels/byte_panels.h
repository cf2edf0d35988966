// Panels of panel.h for rows of byte_rows.h whose codec's weights become float32, an array `at` of
// vectors. Weights and values stay as they are and are scaled in the end, in the order in which the
// rows for few tokens do it: the results are the same bits.
#pragma once

#include "byte_rows.h"

namespace ktd {
namespace {

template <class Rows, class IsaVec, int Tokens>
struct BytePanels {
  using Vec = IsaVec;
  using Codec = typename Rows::Codec;
  static constexpr std::size_t kUnit = Rows::kUnit;
  static constexpr int kPanelRows = 4;
  static constexpr int kPanelTokens = Tokens;
  static constexpr std::size_t kPanelStep = Codec::kStep;
  static constexpr std::size_t kInputBytes = 1;

  static constexpr std::size_t PackedBytes(std::size_t columns) noexcept {
    return Rows::PackedBytes(columns);
  }
  static void Pack(const Matrix& m, const Bf16* x, std::uint8_t* packed) noexcept {
    Rows::Pack(m, x, packed);
  }
  static void Fill(const Matrix& m, std::size_t row, std::size_t first, std::size_t n,
                   float* to) noexcept {
    const std::uint8_t* from = Rows::Address(m, row) + first;
    for (std::size_t i = 0; i < n; i += kPanelStep, to += kPanelStep) {
      const typename Codec::Weights w =
          n - i >= kPanelStep ? Codec::Load(from + i) : Codec::LoadTail(from + i, n - i);
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kPanelStep / Vec::kLanes; ++v) {
        Vec::Store(to + v * Vec::kLanes, w.at[v]);
      }
    }
  }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    Rows::Activate(activation, gate, up, n, act);
  }
};

// One scale for a row of weights and one for a token.
template <class Rows, class IsaVec, int Tokens>
struct RowPanels : BytePanels<Rows, IsaVec, Tokens> {
  static float Finish(const Matrix& m, std::size_t row, const std::uint8_t* token,
                      float sum) noexcept {
    return sum * (Rows::Of(m, token).scale * RowScale(m, row));
  }
};

// Scales for every 128 inputs: products become part of the total 128 inputs at a time.
template <class Rows, class IsaVec, int Tokens>
struct BlockPanels : BytePanels<Rows, IsaVec, Tokens> {
  using Vec = IsaVec;

  // PanelBlock() of panel.h, for inputs [first, first + n) of a row.
  template <int N>
  static void Block(const Matrix& m, std::size_t row, std::size_t first, const float* panel,
                    const std::uint8_t* const* tokens, std::size_t n, float* unfinished) noexcept {
    using V = typename Vec::V;
    constexpr int R = BlockPanels::kPanelRows;
    const float* x[N];
    const float* of[N];
    V total[N][R];
    for (int t = 0; t < N; ++t) {
      x[t] = reinterpret_cast<const float*>(tokens[t]) + first;
      of[t] = Rows::Of(m, tokens[t]) + first / kFp8Block;
      for (int r = 0; r < R; ++r) {
        total[t][r] = first > 0 ? Vec::Load(unfinished + (t * R + r) * Vec::kLanes) : Vec::Zero();
      }
    }
    const float* scales = BlockScales(m, row) + first / kFp8Block;
    for (std::size_t begin = 0; begin < n; begin += kFp8Block) {
      V acc[N][R];
      for (int t = 0; t < N; ++t) {
        for (int r = 0; r < R; ++r) acc[t][r] = Vec::Zero();
      }
      const std::size_t end = Smaller(begin + kFp8Block, n);
      for (std::size_t i = begin; i < end; i += Vec::kLanes) {
        V xs[N];
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) xs[t] = Vec::Load(x[t] + i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const V w = Vec::Load(panel + static_cast<std::size_t>(r) * kPanelInputs + i);
#pragma GCC unroll 8
          for (int t = 0; t < N; ++t) acc[t][r] = Vec::Fma(w, xs[t], acc[t][r]);
        }
      }
      const std::size_t b = begin / kFp8Block;
      for (int t = 0; t < N; ++t) {
        const V factor = Vec::Set(scales[b] * of[t][b]);
        for (int r = 0; r < R; ++r) total[t][r] = Vec::Fma(acc[t][r], factor, total[t][r]);
      }
    }
    for (int t = 0; t < N; ++t) {
      for (int r = 0; r < R; ++r) {
        Vec::Store(unfinished + (t * R + r) * Vec::kLanes, total[t][r]);
      }
    }
  }
};

}  // namespace
}  // namespace ktd
