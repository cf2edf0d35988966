// Where one expert's matrices lie in a layer's tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/activation.h"
#include "weight_format.h"

namespace ktd {

// Lines of one projection that lie by themselves, `pitch` bytes apart.
struct Lines {
  const std::uint8_t* start = nullptr;  // aligned to its elements
  std::size_t pitch = 0;
};

// Projections that lie by themselves, as in the files of a checkpoint: the gate and up lines of
// each expert in turn, or the down lines. Interleaved rows are two projections with twice the
// pitch. What is empty lies in the layer's tensor instead.
struct Scattered {
  std::vector<Lines> weights;
  std::vector<Lines> scales;
  std::vector<Lines> zeros;
};

// Borrowed weights of one layer; the caller keeps them alive and unmoved as long as the pool. All
// tensors are contiguous with the expert as first dimension; w13 holds the gate rows and then the
// up rows (column-major formats: outputs), or, interleaved, gate and up row by row. A tensor that
// is scattered has no address.
struct LayerWeights {
  std::size_t num_experts = 0;
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  WeightFormat format = WeightFormat::kBf16;
  std::size_t group = 0;  // inputs under one scale: kInt4, kGptq, kAwq
  ScaleType scale_type = ScaleType::kNone;
  bool interleaved = false;
  const std::uint8_t* w13 = nullptr;
  const std::uint8_t* w2 = nullptr;
  const std::uint8_t* w13_scales = nullptr;
  const std::uint8_t* w2_scales = nullptr;
  const std::uint8_t* w13_zeros = nullptr;
  const std::uint8_t* w2_zeros = nullptr;
  Scattered w13_scattered = {};
  Scattered w2_scattered = {};
  const Bf16* w13_bias = nullptr;  // [num_experts, 2 * intermediate], in the order of w13's rows
  const Bf16* w2_bias = nullptr;   // [num_experts, hidden]
  Activation activation = {};
  float routed_scale = 1.0f;          // multiplies every router weight
  bool weights_before_input = false;  // the router weight multiplies gate and up, not the output
};

struct ExpertMatrices {
  Matrix gate;
  Matrix up;
  Matrix down;
  const Bf16* gate_bias;
  const Bf16* up_bias;
  std::size_t bias_step;
  const Bf16* down_bias;
};

// Throws CheckError with one sentence for sizes or tensors that the format cannot have.
void CheckLayer(const LayerWeights& layer);

ExpertMatrices MatricesOf(const LayerWeights& layer, std::size_t expert) noexcept;

// Bytes of one expert, scales, zeros and biases included.
std::uint64_t ExpertBytes(const LayerWeights& layer) noexcept;

}  // namespace ktd
