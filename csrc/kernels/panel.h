// The sums of a slab for many tokens without matrix units: a few rows of weights become float32
// once, in L1, and stay there while the tokens pass by in register blocks.
//
// A way to do it is a type with
//
//   Vec                            float32 vector of an ISA: kLanes, V, Load, Store, Zero, Fma, Sum
//   kPanelRows, kPanelTokens       rows of the panel; tokens of a register block
//   Fill(m, row, first, n, to)     float32 values of inputs [first, first + n) of a row, scales
//                                  included, zeros up to the next multiple of kPanelStep
//   Pack(m, x, packed)             the inputs in the same order, zeros behind them
//   kPanelStep                     a multiple of kLanes
//   Finish(m, row, token, sum)     optional: the row's sum with its scales, where Fill leaves them
//   Block<N>(...)                  optional: a PanelBlock of its own, for scales along the inputs
//   kInputBytes                    optional: of a weight, where rows lie m.pitch apart: the next
//                                  panel's are then prefetched while the tokens pass by
// and Activate, kUnit, PackedBytes as gemv.h wants them (PanelBytes gives the last). `first` is a
// multiple of kPanelInputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ktd {
namespace {

// Inputs of a panel: 4 rows of 512 floats are 8 KiB and leave L1 to the tokens.
constexpr std::size_t kPanelInputs = 512;
constexpr std::size_t kMostPanelRows = 4;
constexpr std::size_t kMostLanes = 16;
constexpr std::size_t kMostStep = 128;

constexpr std::size_t PanelBytes(std::size_t columns) noexcept {
  return (columns + kMostStep - 1) / kMostStep * kMostStep * sizeof(float);
}

// Panel and unfinished sums of a slab of `tokens` tokens.
constexpr std::size_t PanelScratchBytes(std::size_t tokens) noexcept {
  return (kMostPanelRows * kPanelInputs + kMostPanelRows * tokens * kMostLanes) * sizeof(float);
}

// Inlined always: a function that does nothing else is dropped by GCC 12, as one without effects.
[[gnu::always_inline]] inline void PrefetchLines(const std::uint8_t* begin,
                                                 std::size_t bytes) noexcept {
  for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(begin + i, 0, 2);
}

// What comes behind inputs [first, first + kPanelInputs) of a panel's rows: more of them, or the
// rows behind. On one Zen 5 core, 16 tokens of bf16 and of fp8_block: 90 and 83 Gop/s without, 101
// and 102 with; 112 and 104 from L2.
template <class F>
[[gnu::always_inline]] inline void PrefetchNextPanel(const Matrix& m, std::size_t row,
                                                     std::size_t first, std::size_t end) noexcept {
  std::size_t next = first + kPanelInputs;
  if (next >= m.columns) {
    next = 0;
    row += F::kPanelRows;
  }
  if (row >= end) return;
  const std::size_t left = m.columns - next;
  const std::size_t bytes = (left < kPanelInputs ? left : kPanelInputs) * F::kInputBytes;
  for (std::size_t r = 0; r < F::kPanelRows && row + r < end; ++r) {
    PrefetchLines(m.weights + (row + r) * m.pitch + next * F::kInputBytes, bytes);
  }
}

// One register block: N tokens against the panel's rows, `n` inputs (a multiple of kLanes).
template <class F, int N>
inline void PanelBlock(const float* panel, const float* const (&x)[N], std::size_t n, bool begun,
                       float* unfinished) noexcept {
  using Vec = typename F::Vec;
  constexpr int R = F::kPanelRows;
  typename Vec::V acc[N][R];
  for (int t = 0; t < N; ++t) {
    for (int r = 0; r < R; ++r) {
      acc[t][r] = begun ? Vec::Load(unfinished + (t * R + r) * Vec::kLanes) : Vec::Zero();
    }
  }
  for (std::size_t i = 0; i < n; i += Vec::kLanes) {
    typename Vec::V xs[N];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) xs[t] = Vec::Load(x[t] + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename Vec::V w = Vec::Load(panel + static_cast<std::size_t>(r) * kPanelInputs + i);
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) acc[t][r] = Vec::Fma(w, xs[t], acc[t][r]);
    }
  }
  for (int t = 0; t < N; ++t) {
    for (int r = 0; r < R; ++r) Vec::Store(unfinished + (t * R + r) * Vec::kLanes, acc[t][r]);
  }
}

// Calls block<count>, 0 < count <= N.
template <int N, class Block>
inline void Remainder(std::size_t count, const Block& block) noexcept {
  if constexpr (N > 0) {
    if (count == N) {
      block.template operator()<N>();
    } else {
      Remainder<N - 1>(count, block);
    }
  }
}

// sums[t * stride + (row - begin)] for rows [begin, end) and the prepared tokens.
template <class F>
inline void PanelSums(const Matrix& m, std::size_t begin, std::size_t end,
                      const std::uint8_t* const* tokens, std::size_t count, float* scratch,
                      float* sums, std::size_t stride) noexcept {
  using Vec = typename F::Vec;
  constexpr std::size_t kRows = F::kPanelRows;
  constexpr std::size_t kTile = kRows * Vec::kLanes;  // unfinished sums of one token
  float* panel = scratch;
  float* unfinished = scratch + kMostPanelRows * kPanelInputs;
  for (std::size_t row = begin; row < end; row += kRows) {
    const std::size_t rows = end - row < kRows ? end - row : kRows;
    for (std::size_t first = 0; first < m.columns; first += kPanelInputs) {
      const std::size_t left = m.columns - first;
      const std::size_t n = left < kPanelInputs ? left : kPanelInputs;
      const std::size_t padded = (n + F::kPanelStep - 1) / F::kPanelStep * F::kPanelStep;
      for (std::size_t r = 0; r < kRows; ++r) {
        // Rows beyond the end are computed and forgotten.
        F::Fill(m, row + (r < rows ? r : 0), first, n, panel + r * kPanelInputs);
      }
      if constexpr (requires { F::kInputBytes; }) PrefetchNextPanel<F>(m, row, first, end);
      std::size_t token = 0;
      const auto block = [&]<int N>() noexcept {
        float* to = unfinished + token * kTile;
        if constexpr (requires { &F::template Block<N>; }) {
          F::template Block<N>(m, row, first, panel, tokens + token, padded, to);
        } else {
          const float* x[N];
          for (int t = 0; t < N; ++t) {
            x[t] =
                reinterpret_cast<const float*>(tokens[token + static_cast<std::size_t>(t)]) + first;
          }
          PanelBlock<F, N>(panel, x, padded, first > 0, to);
        }
        token += N;
      };
      while (count - token >= F::kPanelTokens) block.template operator()<F::kPanelTokens>();
      Remainder<F::kPanelTokens - 1>(count - token, block);
    }
    for (std::size_t t = 0; t < count; ++t) {
      for (std::size_t r = 0; r < rows; ++r) {
        float sum = Vec::Sum(Vec::Load(unfinished + t * kTile + r * Vec::kLanes));
        if constexpr (requires { &F::Finish; }) sum = F::Finish(m, row + r, tokens[t], sum);
        sums[t * stride + (row - begin) + r] = sum;
      }
    }
  }
}

}  // namespace
}  // namespace ktd
