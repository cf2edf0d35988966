// Rows of bf16 weights against rows of bf16 values, over an ISA: a type with
//   Acc, Wide                      float32 accumulator; kStep bf16 values ready to be multiplied
//   kStep, kRowsOne, kRowsMany, kTokens
//   kPrefetchFar                   whether weights are prefetched into L2, not into L1
//   Zero(), Load(p), LoadTail(p, n < kStep, the rest zero), Madd(acc, w, x), Sum(acc),
//   Activate(...)
#pragma once

#include "gemv.h"

namespace ktd {
namespace {

template <class Isa>
struct Bf16Rows {
  static constexpr std::size_t kUnit = 8;
  static constexpr bool kRowsFollow = true;
  static constexpr int kRowsOne = Isa::kRowsOne;
  static constexpr int kRowsMany = Isa::kRowsMany;
  static constexpr int kTokens = Isa::kTokens;

  static constexpr std::size_t PackedBytes(std::size_t) noexcept { return 0; }
  static void Pack(const Matrix&, const Bf16*, std::uint8_t*) noexcept {}
  static const std::uint8_t* Address(const Matrix& m, std::size_t row) noexcept {
    return m.weights + row * m.pitch;
  }

  template <int R, int N>
  static void Dot(const Matrix& m, std::size_t row, const std::uint8_t* const (&tokens)[N],
                  std::ptrdiff_t ahead, float (&sums)[N][R]) noexcept {
    const Bf16* rows[R];
    const Bf16* x[N];
    for (int r = 0; r < R; ++r) {
      rows[r] = reinterpret_cast<const Bf16*>(Address(m, row + static_cast<std::size_t>(r)));
    }
    for (int t = 0; t < N; ++t) x[t] = reinterpret_cast<const Bf16*>(tokens[t]);
    typename Isa::Acc acc[N][R];
    for (int t = 0; t < N; ++t) {
      for (int r = 0; r < R; ++r) acc[t][r] = Isa::Zero();
    }
    std::size_t i = 0;
    for (; i + Isa::kStep <= m.columns; i += Isa::kStep) {
      typename Isa::Wide xs[N];
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) xs[t] = Isa::Load(x[t] + i);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        if (ahead != 0) {
          // Into which cache has to be a constant.
          const auto* there = reinterpret_cast<const char*>(
              reinterpret_cast<std::uintptr_t>(rows[r] + i) + static_cast<std::uintptr_t>(ahead));
          if constexpr (Isa::kPrefetchFar) {
            __builtin_prefetch(there, 0, 2);
          } else {
            __builtin_prefetch(there, 0, 3);
          }
        }
        const typename Isa::Wide w = Isa::Load(rows[r] + i);
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) acc[t][r] = Isa::Madd(acc[t][r], w, xs[t]);
      }
    }
    if (i < m.columns) {
      typename Isa::Wide xs[N];
      for (int t = 0; t < N; ++t) xs[t] = Isa::LoadTail(x[t] + i, m.columns - i);
      for (int r = 0; r < R; ++r) {
        const typename Isa::Wide w = Isa::LoadTail(rows[r] + i, m.columns - i);
        for (int t = 0; t < N; ++t) acc[t][r] = Isa::Madd(acc[t][r], w, xs[t]);
      }
    }
    for (int t = 0; t < N; ++t) {
      for (int r = 0; r < R; ++r) sums[t][r] = Isa::Sum(acc[t][r]);
    }
  }

  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    Isa::Activate(activation, gate, up, n, act);
  }
};

}  // namespace
}  // namespace ktd
