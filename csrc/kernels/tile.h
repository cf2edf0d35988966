// The two products over an ISA: a tile of weight rows x tokens held in accumulators.
//
// An ISA is a type with
//   Acc, Wide                      float32 accumulator; kStep bf16 values ready to be multiplied
//   kStep, kTokens                 bf16 values per step; tokens per tile that its registers hold
//   Zero(), Load(p), LoadTail(p, n < kStep, the rest zero), Madd(acc, w, x), Sum(acc)
//   SiluMul(gate, up, act, n)      act = bf16(silu(gate) * up)
// and lives in an anonymous namespace of its kernel file, which gives what is instantiated here
// internal linkage too (see bf16.h).
//
// Each sum has one accumulator, whatever the tile's shape, so that a token's result does not depend
// on its batch; the latency of the additions is hidden by the rows and tokens beside it.
#pragma once

#include <cstdint>

#include "bf16.h"
#include "moe_job.h"

namespace ktd {
namespace {

constexpr std::size_t kSlabTokens = 64;  // rows of x or act that stay in L2 while weights stream by
constexpr std::size_t kSlabRows = 32;    // gate and up sums kept for one pass of SiLU

constexpr std::size_t Smaller(std::size_t a, std::size_t b) noexcept { return a < b ? a : b; }

// sums[t][r] = rows[r] . x[t]; prefetches each row's successor, `ahead` elements behind it. A
// prefetch beyond the weights is harmless: it never faults.
template <class Isa, int R, int N>
inline void DotTile(const Bf16* const (&rows)[R], std::size_t ahead, const Bf16* const (&x)[N],
                    std::size_t n, float (&sums)[N][R]) noexcept {
  typename Isa::Acc acc[N][R];
  for (int t = 0; t < N; ++t) {
    for (int r = 0; r < R; ++r) acc[t][r] = Isa::Zero();
  }
  std::size_t i = 0;
  for (; i + Isa::kStep <= n; i += Isa::kStep) {
    typename Isa::Wide xs[N];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) xs[t] = Isa::Load(x[t] + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const std::uintptr_t next =
          reinterpret_cast<std::uintptr_t>(rows[r]) + (ahead + i) * sizeof(Bf16);
      __builtin_prefetch(reinterpret_cast<const void*>(next), 0, 3);
      const typename Isa::Wide w = Isa::Load(rows[r] + i);
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) acc[t][r] = Isa::Madd(acc[t][r], w, xs[t]);
    }
  }
  if (i < n) {
    typename Isa::Wide xs[N];
    for (int t = 0; t < N; ++t) xs[t] = Isa::LoadTail(x[t] + i, n - i);
    for (int r = 0; r < R; ++r) {
      const typename Isa::Wide w = Isa::LoadTail(rows[r] + i, n - i);
      for (int t = 0; t < N; ++t) acc[t][r] = Isa::Madd(acc[t][r], w, xs[t]);
    }
  }
  for (int t = 0; t < N; ++t) {
    for (int r = 0; r < R; ++r) sums[t][r] = Isa::Sum(acc[t][r]);
  }
}

// Calls body.template operator()<N>(first) for tiles of N <= Isa::kTokens tokens over [0, count).
template <class Isa, class Body>
inline void ForTiles(std::size_t count, const Body& body) noexcept {
  std::size_t first = 0;
  for (; first + Isa::kTokens <= count; first += Isa::kTokens) {
    body.template operator()<Isa::kTokens>(first);
  }
  if constexpr (Isa::kTokens > 3) {
    if (count - first == 3) return body.template operator()<3>(first);
  }
  if constexpr (Isa::kTokens > 2) {
    if (count - first == 2) return body.template operator()<2>(first);
  }
  if (count - first == 1) body.template operator()<1>(first);
}

struct GateUpSlab {
  float gate[kSlabTokens][kSlabRows];
  float up[kSlabTokens][kSlabRows];
};

// Gate and up sums of rows [row, row + Half) for the pairs [first, first + count).
template <class Isa, int Half>
inline void GateUpRows(const GateUpJob& job, std::size_t row, std::size_t slab_row,
                       std::size_t first, std::size_t count, GateUpSlab& slab) noexcept {
  const Bf16* rows[2 * Half];
  for (int r = 0; r < Half; ++r) {
    const std::size_t offset = (row + static_cast<std::size_t>(r)) * job.hidden;
    rows[r] = job.gate + offset;
    rows[Half + r] = job.up + offset;
  }
  const std::size_t column = row - slab_row;
  const auto tile = [&]<int N>(std::size_t t0) noexcept {
    const Bf16* x[N];
    for (int t = 0; t < N; ++t) {
      const std::int32_t token = job.tokens[first + t0 + static_cast<std::size_t>(t)];
      x[t] = job.x + static_cast<std::size_t>(token) * job.hidden;
    }
    float sums[N][2 * Half];
    DotTile<Isa, 2 * Half, N>(rows, Half * job.hidden, x, job.hidden, sums);
    for (int t = 0; t < N; ++t) {
      for (int r = 0; r < Half; ++r) {
        slab.gate[t0 + static_cast<std::size_t>(t)][column + static_cast<std::size_t>(r)] =
            sums[t][r];
        slab.up[t0 + static_cast<std::size_t>(t)][column + static_cast<std::size_t>(r)] =
            sums[t][Half + r];
      }
    }
  };
  if constexpr (Half > 2) {
    tile.template operator()<1>(0);  // only called for one pair: more would not fit in registers
  } else {
    ForTiles<Isa>(count, tile);
  }
}

template <class Isa>
inline void GateUpTiled(const GateUpJob& job) noexcept {
  GateUpSlab slab;
  for (std::size_t first = 0; first < job.count; first += kSlabTokens) {
    const std::size_t count = Smaller(kSlabTokens, job.count - first);
    for (std::size_t slab_row = job.row_begin; slab_row < job.row_end; slab_row += kSlabRows) {
      const std::size_t end = Smaller(slab_row + kSlabRows, job.row_end);
      std::size_t row = slab_row;
      if (count == 1) {
        for (; row + 4 <= end; row += 4) GateUpRows<Isa, 4>(job, row, slab_row, first, 1, slab);
      }
      for (; row + 2 <= end; row += 2) GateUpRows<Isa, 2>(job, row, slab_row, first, count, slab);
      for (; row < end; ++row) GateUpRows<Isa, 1>(job, row, slab_row, first, count, slab);
      for (std::size_t p = 0; p < count; ++p) {
        Isa::SiluMul(slab.gate[p], slab.up[p], job.act + (first + p) * job.act_stride + slab_row,
                     end - slab_row);
      }
    }
  }
}

// Adds rows [row, row + R) for the pairs [first, first + count).
template <class Isa, int R>
inline void DownRows(const DownJob& job, std::size_t row, std::size_t first,
                     std::size_t count) noexcept {
  const Bf16* rows[R];
  for (int r = 0; r < R; ++r) {
    rows[r] = job.down + (row + static_cast<std::size_t>(r)) * job.intermediate;
  }
  const auto tile = [&]<int N>(std::size_t t0) noexcept {
    const Bf16* act[N];
    for (int t = 0; t < N; ++t) {
      act[t] = job.act + (first + t0 + static_cast<std::size_t>(t)) * job.act_stride;
    }
    float sums[N][R];
    DotTile<Isa, R, N>(rows, R * job.intermediate, act, job.intermediate, sums);
    for (int t = 0; t < N; ++t) {
      const std::size_t p = first + t0 + static_cast<std::size_t>(t);
      float* out = job.out + static_cast<std::size_t>(job.tokens[p]) * job.out_stride + row;
      for (int r = 0; r < R; ++r) out[r] += job.weights[p] * sums[t][r];
    }
  };
  if constexpr (R > 4) {
    tile.template operator()<1>(0);
  } else {
    ForTiles<Isa>(count, tile);
  }
}

template <class Isa>
inline void DownTiled(const DownJob& job) noexcept {
  for (std::size_t first = 0; first < job.count; first += kSlabTokens) {
    const std::size_t count = Smaller(kSlabTokens, job.count - first);
    std::size_t row = job.row_begin;
    if (count == 1) {
      for (; row + 8 <= job.row_end; row += 8) DownRows<Isa, 8>(job, row, first, 1);
    }
    for (; row + 4 <= job.row_end; row += 4) DownRows<Isa, 4>(job, row, first, count);
    for (; row < job.row_end; ++row) DownRows<Isa, 1>(job, row, first, count);
  }
}

}  // namespace
}  // namespace ktd
