// The two products of an expert as plain pointers and sizes.
//
// A kernel is noexcept, checks nothing, allocates nothing and keeps no state. Pointers need only
// the alignment of their elements, scratch and activations a cache line's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../weight_format.h"
#include "activation.h"

namespace ktd {

// For i in [row_begin, row_end) and every pair p in [0, count):
//   gate = x[tokens[p]] . gate[i], up = x[tokens[p]] . up[i], both plus bias, times scale[p] if
//   given act[p, i] = bf16(activation(gate, up)), rounded to nearest even
// Formats that quantise activations do it to x here, and to act before the second product.
struct GateUpJob {
  Matrix gate;  // [intermediate, hidden]
  Matrix up;
  const Bf16* gate_bias;  // null, or bias_step apart
  const Bf16* up_bias;
  std::size_t bias_step;
  Activation activation;
  std::size_t row_begin;  // a multiple of the kernel's unit
  std::size_t row_end;
  const Bf16* x;               // [tokens of the call, hidden]
  const std::int32_t* tokens;  // [count]
  const float* scale;          // [count], or null
  std::size_t count;
  std::uint8_t* act;      // act_bytes(intermediate, count) of the same kernel
  std::uint8_t* scratch;  // scratch_bytes(...) of the same kernel
  bool same_tokens;       // scratch is as the last call left it, and that call had these tokens
  Ahead after;            // what this worker reads next
};

// Pairs [pair_begin, pair_end) of act become what `down` multiplies.
struct PrepareJob {
  Matrix down;
  const std::uint8_t* act;  // as GateUpJob left it
  std::size_t count;        // pairs of the group
  std::size_t pair_begin;   // a multiple of the kernel's prepare_unit
  std::size_t pair_end;
  std::uint8_t* prepared;  // prepared_bytes(intermediate, count) of the same kernel
};

// out[tokens[p], h - out_first] += weights[p] * (act[p] . down[h] + bias[h]) for h in [row_begin,
// row_end), p ascending.
struct DownJob {
  Matrix down;       // [hidden, intermediate]
  const Bf16* bias;  // null, or [hidden]
  std::size_t row_begin;
  std::size_t row_end;
  const std::uint8_t* act;     // as GateUpJob left it, or prepared from that
  const std::int32_t* tokens;  // [count]
  const float* weights;        // [count]
  std::size_t count;
  float* out;             // [tokens of the call, out_stride]
  std::size_t out_first;  // the row that out's first column stands for
  std::size_t out_stride;
  std::uint8_t* scratch;
  Ahead after;
};

// One way to compute an expert of one format. A row's sum has one order of additions, whatever the
// number of tokens beside it or the range of rows asked for, so within one ExpertKernel a token's
// result depends neither on its batch nor on how the work was split among threads.
struct ExpertKernel {
  void (*gate_up)(const GateUpJob&);
  void (*down)(const DownJob&);
  // Bytes of a group's activations between the two products.
  std::size_t (*act_bytes)(std::size_t intermediate, std::size_t count);
  // Bytes of a worker's scratch for experts of up to `hidden` and `intermediate`.
  std::size_t (*scratch_bytes)(std::size_t hidden, std::size_t intermediate);
  std::size_t unit;  // rows: ranges begin at its multiples, in both products
  // Once for all workers, between the products; null where `down` takes activations as gate_up
  // leaves them.
  void (*prepare)(const PrepareJob&) = nullptr;
  std::size_t (*prepared_bytes)(std::size_t intermediate, std::size_t count) = nullptr;
  std::size_t prepare_unit = 1;  // pairs
};

// How one ISA computes one format: `few` for a handful of tokens of an expert, `many` from
// `many_from` tokens on. `many` may be the same as `few`.
struct FormatKernels {
  const ExpertKernel* few;
  const ExpertKernel* many;
  std::size_t many_from;
};

}  // namespace ktd
