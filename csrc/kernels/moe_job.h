// The two products of an expert as plain pointers and sizes.
//
// A kernel is noexcept, checks nothing, allocates nothing and keeps no state. Pointers need only
// the alignment of their elements. A row's sum has one order of additions per kernel, whatever the
// number of tokens beside it or the range of rows asked for, so a token's result depends neither on
// its batch nor on how the work was split among threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ktd {

using Bf16 = std::uint16_t;  // the upper half of a float32

// act[p, i] = bf16(silu(x[tokens[p]] . gate[i]) * (x[tokens[p]] . up[i])), rounded to nearest even,
// for i in [row_begin, row_end) and every pair p in [0, count).
struct GateUpJob {
  const Bf16* gate;  // [intermediate, hidden], row-major
  const Bf16* up;    // [intermediate, hidden], row-major
  std::size_t hidden;
  std::size_t row_begin;
  std::size_t row_end;
  const Bf16* x;               // [tokens of the call, hidden]
  const std::int32_t* tokens;  // [count]
  std::size_t count;
  Bf16* act;  // [count, act_stride]; only columns [row_begin, row_end) are written
  std::size_t act_stride;
};

// out[tokens[p], h] += weights[p] * (act[p] . down[h]) for h in [row_begin, row_end), p ascending.
struct DownJob {
  const Bf16* down;  // [hidden, intermediate], row-major
  std::size_t intermediate;
  std::size_t row_begin;
  std::size_t row_end;
  const Bf16* act;  // [count, act_stride]
  std::size_t act_stride;
  const std::int32_t* tokens;  // [count]
  const float* weights;        // [count]
  std::size_t count;
  float* out;  // [tokens of the call, out_stride]
  std::size_t out_stride;
};

// One pair per file beside this header.
void GateUpScalar(const GateUpJob& job) noexcept;
void DownScalar(const DownJob& job) noexcept;
void GateUpAvx2(const GateUpJob& job) noexcept;
void DownAvx2(const DownJob& job) noexcept;
void GateUpAvx512(const GateUpJob& job) noexcept;
void DownAvx512(const DownJob& job) noexcept;
void GateUpAvx512Bf16(const GateUpJob& job) noexcept;
void DownAvx512Bf16(const DownJob& job) noexcept;

}  // namespace ktd
