// The two products for a handful of tokens: weights stream by once, tokens stay in cache.
//
// A way to do it (one format on one ISA) is a type in an anonymous namespace of its kernel file,
// which gives what is instantiated here internal linkage too (see bf16.h):
//
//   kUnit                          rows; ranges begin at its multiples
//   kRowsOne, kRowsMany, kTokens   rows of a tile for one token and for more; tokens of a tile
//   kRowsLast                      rows of the tiles at the end; left out, 1
//   PackedBytes(columns)           of a prepared token, a multiple of 64; 0: rows of x are taken as
//                                  they are
//   Pack(m, x, packed)             prepares one row of m.columns bf16 values
//   Address(m, row)                where a row's weights begin
//   kRowsFollow                    present: rows lie m.pitch apart, so that any of them can be
//                                  prefetched; else the tile's height behind
//   Dot<R, N>(m, row, x, ahead, sums)   sums[t][r] = row (row + r) . x[t], scales included; it
//                                  prefetches what lies `ahead` bytes behind each row's weights,
//                                  nothing if that is 0 (a prefetch never faults)
//   Activate(activation, gate, up, n, act)
//
// A type with kPanelRows is one of panel.h instead: it has Fill in place of Address and Dot.
//
// Each sum has one order of additions, whatever the tile's shape, so that a token's result does not
// depend on its batch; the latency of the additions is hidden by the rows and tokens beside it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bf16.h"
#include "moe_job.h"
#include "panel.h"

namespace ktd {
namespace {

constexpr std::size_t kSlabTokens = 64;  // prepared tokens that stay in L2 while weights stream by
constexpr std::size_t kSlabSums = 4096;  // gate or up sums kept for one pass of the activation
// How far ahead weights are prefetched, in whole rows: what memory delivers to a core while a line
// is on its way.
constexpr std::size_t kAheadBytes = 4096;

constexpr std::size_t Smaller(std::size_t a, std::size_t b) noexcept { return a < b ? a : b; }
constexpr std::size_t Larger(std::size_t a, std::size_t b) noexcept { return a < b ? b : a; }
constexpr std::size_t RoundUp(std::size_t n, std::size_t unit) noexcept {
  return (n + unit - 1) / unit * unit;
}

// Prepared tokens of one pass over the weights: kSlab, where the format wants less than the most.
template <class F>
constexpr std::size_t SlabOf() noexcept {
  if constexpr (requires { F::kSlab; }) {
    return F::kSlab;
  } else {
    return kSlabTokens;
  }
}

template <class F>
concept Panels = requires { F::kPanelRows; };

struct GemvScratch {
  std::uint8_t* packed;
  float* first;   // kSlabSums
  float* second;  // kSlabSums
  float* panel;   // PanelScratchBytes(kSlabTokens), where the format has panels
};

template <class F>
inline std::size_t GemvScratchBytes(std::size_t hidden, std::size_t) noexcept {
  const std::size_t panel = Panels<F> ? PanelScratchBytes(kSlabTokens) : 0;
  return kSlabTokens * F::PackedBytes(hidden) + 2 * kSlabSums * sizeof(float) + panel;
}

template <class F>
inline GemvScratch GemvScratchAt(std::uint8_t* scratch) noexcept {
  float* sums = reinterpret_cast<float*>(scratch);
  const std::size_t panel = Panels<F> ? PanelScratchBytes(kSlabTokens) : 0;
  return {scratch + 2 * kSlabSums * sizeof(float) + panel, sums, sums + kSlabSums,
          sums + 2 * kSlabSums};
}

inline std::size_t GemvActBytes(std::size_t intermediate, std::size_t count) noexcept {
  return RoundUp(count * intermediate * sizeof(Bf16), 64);
}

// The tokens of a slab, prepared.
struct SlabTokens {
  const std::uint8_t* at[kSlabTokens];
  std::size_t count;
};

template <class F>
inline void Prepare(const Matrix& m, const Bf16* row, std::uint8_t* packed, std::size_t index,
                    bool prepared, SlabTokens& slab) noexcept {
  const std::size_t bytes = F::PackedBytes(m.columns);
  if (bytes == 0) {
    slab.at[index] = reinterpret_cast<const std::uint8_t*>(row);
    return;
  }
  if (!prepared) F::Pack(m, row, packed + index * bytes);
  slab.at[index] = packed + index * bytes;
}

// Rows [row, row + R) for every token of the slab.
template <class F, int R>
inline void TileRows(const Matrix& m, std::size_t row, const SlabTokens& slab, std::ptrdiff_t ahead,
                     float* sums, std::size_t stride) noexcept {
  std::size_t first = 0;
  const auto tile = [&]<int N>() noexcept {
    const std::uint8_t* x[N];
    for (int t = 0; t < N; ++t) x[t] = slab.at[first + static_cast<std::size_t>(t)];
    float tile_sums[N][R];
    F::template Dot<R, N>(m, row, x, first == 0 ? ahead : 0, tile_sums);
    for (int t = 0; t < N; ++t) {
      for (int r = 0; r < R; ++r) {
        sums[(first + static_cast<std::size_t>(t)) * stride + static_cast<std::size_t>(r)] =
            tile_sums[t][r];
      }
    }
    first += N;
  };
  while (slab.count - first >= F::kTokens) tile.template operator()<F::kTokens>();
  if constexpr (F::kTokens > 3) {
    if (slab.count - first == 3) return tile.template operator()<3>();
  }
  if constexpr (F::kTokens > 2) {
    if (slab.count - first == 2) return tile.template operator()<2>();
  }
  if (slab.count - first == 1) tile.template operator()<1>();
}

// Where the weights are that follow those of [row, row + R) at a distance; prefetches the scales
// there.
template <class F, int R>
inline const std::uint8_t* Distant(const Matrix& m, std::size_t row, std::size_t end,
                                   const Ahead& after) noexcept {
  if constexpr (requires { F::kRowsFollow; }) {
    const std::size_t target = row + RoundUp(Larger(kAheadBytes / m.pitch, 1), R);
    const bool inside = target < end;
    // Beyond the end it is as far into what follows. A prefetch of an address that is not there
    // does nothing.
    const Ahead next = inside ? AheadOf(m, target) : after;
    const std::size_t beyond = inside ? 0 : target - end;
    if (next.scales != nullptr) {
      PrefetchLines(next.scales + beyond * m.scale_pitch, R * m.scale_pitch);
    }
    return next.weights == nullptr ? nullptr : next.weights + beyond * m.pitch;
  } else {
    return row + R < end ? F::Address(m, row + R) : after.weights;
  }
}

// sums[t * stride + (row - begin)] for rows [begin, end); `after` is read next.
template <class F>
inline void StreamSums(const Matrix& m, std::size_t begin, std::size_t end, const SlabTokens& slab,
                       const Ahead& after, float* sums, std::size_t stride) noexcept {
  std::size_t row = begin;
  const auto rows = [&]<int R>() noexcept {
    for (; row + R <= end; row += R) {
      const std::uint8_t* here = F::Address(m, row);
      const std::uint8_t* next = Distant<F, R>(m, row, end, after);
      // Plain numbers: the two may belong to different objects.
      const std::ptrdiff_t ahead =
          next == nullptr ? 0
                          : static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(next) -
                                                        reinterpret_cast<std::uintptr_t>(here));
      TileRows<F, R>(m, row, slab, ahead, sums + (row - begin), stride);
    }
  };
  if (slab.count == 1) {
    rows.template operator()<F::kRowsOne>();
  } else {
    rows.template operator()<F::kRowsMany>();
  }
  if constexpr (requires { F::kRowsLast; }) {
    rows.template operator()<F::kRowsLast>();
  } else {
    rows.template operator()<1>();
  }
}

template <class F>
inline void SlabSums(const Matrix& m, std::size_t begin, std::size_t end, const SlabTokens& slab,
                     const Ahead& after, float* panel, float* sums) noexcept {
  if constexpr (Panels<F>) {
    PanelSums<F>(m, begin, end, slab.at, slab.count, panel, sums, end - begin);
  } else {
    StreamSums<F>(m, begin, end, slab, after, sums, end - begin);
  }
}

inline void AddBias(const Bf16* bias, std::size_t step, float* sums, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) sums[i] += Widen(bias[i * step]);
}

inline void Scale(float factor, float* sums, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) sums[i] *= factor;
}

template <class F>
inline void GateUpSlab(const GateUpJob& job, std::size_t first, const SlabTokens& slab,
                       const GemvScratch& scratch) noexcept {
  const std::size_t intermediate = job.gate.rows;
  const std::size_t most = Larger(kSlabSums / slab.count / F::kUnit, 1) * F::kUnit;
  Bf16* act = reinterpret_cast<Bf16*>(job.act) + first * intermediate;
  for (std::size_t row = job.row_begin; row < job.row_end; row += most) {
    const std::size_t end = Smaller(row + most, job.row_end);
    const std::size_t n = end - row;
    const Ahead after = end < job.row_end ? AheadOf(job.gate, end) : job.after;
    SlabSums<F>(job.gate, row, end, slab, AheadOf(job.up, row), scratch.panel, scratch.first);
    SlabSums<F>(job.up, row, end, slab, after, scratch.panel, scratch.second);
    for (std::size_t p = 0; p < slab.count; ++p) {
      float* gate = scratch.first + p * n;
      float* up = scratch.second + p * n;
      if (job.gate_bias != nullptr) {
        AddBias(job.gate_bias + row * job.bias_step, job.bias_step, gate, n);
        AddBias(job.up_bias + row * job.bias_step, job.bias_step, up, n);
      }
      if (job.scale != nullptr) {
        Scale(job.scale[first + p], gate, n);
        Scale(job.scale[first + p], up, n);
      }
      F::Activate(job.activation, gate, up, n, act + p * intermediate + row);
    }
  }
}

template <class F>
inline void GateUpGemv(const GateUpJob& job) noexcept {
  const GemvScratch scratch = GemvScratchAt<F>(job.scratch);
  SlabTokens slab;
  for (std::size_t first = 0; first < job.count; first += slab.count) {
    slab.count = Smaller(SlabOf<F>(), job.count - first);
    const bool prepared = job.same_tokens && job.count <= SlabOf<F>();
    for (std::size_t p = 0; p < slab.count; ++p) {
      const auto token = static_cast<std::size_t>(job.tokens[first + p]);
      Prepare<F>(job.gate, job.x + token * job.gate.columns, scratch.packed, p, prepared, slab);
    }
    GateUpSlab<F>(job, first, slab, scratch);
  }
}

template <class F>
inline void DownSlab(const DownJob& job, std::size_t first, const SlabTokens& slab,
                     const GemvScratch& scratch) noexcept {
  const std::size_t most = Larger(kSlabSums / slab.count / F::kUnit, 1) * F::kUnit;
  for (std::size_t row = job.row_begin; row < job.row_end; row += most) {
    const std::size_t end = Smaller(row + most, job.row_end);
    const std::size_t n = end - row;
    const Ahead after = end < job.row_end ? AheadOf(job.down, end) : job.after;
    SlabSums<F>(job.down, row, end, slab, after, scratch.panel, scratch.first);
    for (std::size_t p = 0; p < slab.count; ++p) {
      float* sums = scratch.first + p * n;
      if (job.bias != nullptr) AddBias(job.bias + row, 1, sums, n);
      const auto token = static_cast<std::size_t>(job.tokens[first + p]);
      const float weight = job.weights[first + p];
      float* out = job.out + token * job.out_stride + (row - job.out_first);
      for (std::size_t i = 0; i < n; ++i) out[i] += weight * sums[i];
    }
  }
}

template <class F>
inline void DownGemv(const DownJob& job) noexcept {
  const GemvScratch scratch = GemvScratchAt<F>(job.scratch);
  const std::size_t packed = F::PackedBytes(job.down.columns);
  const std::size_t bytes = packed == 0 ? job.down.columns * sizeof(Bf16) : packed;
  SlabTokens slab;
  for (std::size_t first = 0; first < job.count; first += slab.count) {
    slab.count = Smaller(SlabOf<F>(), job.count - first);
    for (std::size_t p = 0; p < slab.count; ++p) slab.at[p] = job.act + (first + p) * bytes;
    DownSlab<F>(job, first, slab, scratch);
  }
}

template <class F>
inline void PrepareGemv(const PrepareJob& job) noexcept {
  const std::size_t bytes = F::PackedBytes(job.down.columns);
  const Bf16* act = reinterpret_cast<const Bf16*>(job.act);
  for (std::size_t p = job.pair_begin; p < job.pair_end; ++p) {
    F::Pack(job.down, act + p * job.down.columns, job.prepared + p * bytes);
  }
}

template <class F>
inline std::size_t GemvPreparedBytes(std::size_t intermediate, std::size_t count) noexcept {
  return count * F::PackedBytes(intermediate);
}

template <class F>
constexpr ExpertKernel GemvKernel() noexcept {
  if constexpr (F::PackedBytes(1) == 0) {
    return {GateUpGemv<F>, DownGemv<F>, GemvActBytes, GemvScratchBytes<F>, F::kUnit};
  } else {
    return {GateUpGemv<F>, DownGemv<F>,    GemvActBytes,        GemvScratchBytes<F>,
            F::kUnit,      PrepareGemv<F>, GemvPreparedBytes<F>};
  }
}

}  // namespace
}  // namespace ktd
