// The naive twin of every kernel: what the others are tested against, and what runs where nothing
// else can.
//
// A format is a type in an anonymous namespace of its file:
//   Weight(m, row, column)     a weight's value, scale included
//   Prepare(m, x, values)      the m.columns activations that the format multiplies, as float32
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "bf16.h"
#include "moe_job.h"

namespace ktd {
namespace {

inline float Sigmoid(float x) noexcept { return 1.0f / (1.0f + std::exp(-x)); }

// Comparisons are written so that NaN stays NaN.
inline float AtMost(float value, float limit) noexcept { return value > limit ? limit : value; }
inline float AtLeast(float value, float limit) noexcept { return value < limit ? limit : value; }

inline float Activated(const Activation& activation, float g, float u) noexcept {
  switch (activation.kind) {
    case ActivationKind::kGelu:
      return g * 0.5f * std::erfc(-g * 0.70710678f) * u;
    case ActivationKind::kGeluTanh:
      return g * Sigmoid(1.5957691216f * g + 0.07135481627f * g * g * g) * u;
    case ActivationKind::kSwish:
      break;
  }
  g = AtMost(g, activation.limit);
  u = AtLeast(AtMost(u, activation.limit), -activation.limit);
  return g * Sigmoid(activation.alpha * g) * (u + activation.beta);
}

template <class Format>
inline float Dot(const Matrix& m, std::size_t row, const float* x) noexcept {
  float sum = 0.0f;
  for (std::size_t k = 0; k < m.columns; ++k) sum += Format::Weight(m, row, k) * x[k];
  return sum;
}

template <class Format>
inline void GateUpNaive(const GateUpJob& job) noexcept {
  float* x = reinterpret_cast<float*>(job.scratch);
  Bf16* act = reinterpret_cast<Bf16*>(job.act);
  for (std::size_t p = 0; p < job.count; ++p) {
    const auto token = static_cast<std::size_t>(job.tokens[p]);
    Format::Prepare(job.gate, job.x + token * job.gate.columns, x);
    for (std::size_t row = job.row_begin; row < job.row_end; ++row) {
      float gate = Dot<Format>(job.gate, row, x);
      float up = Dot<Format>(job.up, row, x);
      if (job.gate_bias != nullptr) {
        gate += Widen(job.gate_bias[row * job.bias_step]);
        up += Widen(job.up_bias[row * job.bias_step]);
      }
      if (job.scale != nullptr) {
        gate *= job.scale[p];
        up *= job.scale[p];
      }
      act[p * job.gate.rows + row] = Narrow(Activated(job.activation, gate, up));
    }
  }
}

template <class Format>
inline void DownNaive(const DownJob& job) noexcept {
  float* x = reinterpret_cast<float*>(job.scratch);
  const Bf16* act = reinterpret_cast<const Bf16*>(job.act);
  for (std::size_t p = 0; p < job.count; ++p) {
    Format::Prepare(job.down, act + p * job.down.columns, x);
    for (std::size_t row = job.row_begin; row < job.row_end; ++row) {
      float sum = Dot<Format>(job.down, row, x);
      if (job.bias != nullptr) sum += Widen(job.bias[row]);
      const auto token = static_cast<std::size_t>(job.tokens[p]);
      job.out[token * job.out_stride + row - job.out_first] += job.weights[p] * sum;
    }
  }
}

inline std::size_t NaiveActBytes(std::size_t intermediate, std::size_t count) noexcept {
  return (count * intermediate * sizeof(Bf16) + 63) / 64 * 64;
}

inline std::size_t NaiveScratchBytes(std::size_t hidden, std::size_t intermediate) noexcept {
  return (hidden < intermediate ? intermediate : hidden) * sizeof(float);
}

template <class Format>
constexpr ExpertKernel NaiveKernel(std::size_t unit) noexcept {
  return {GateUpNaive<Format>, DownNaive<Format>, NaiveActBytes, NaiveScratchBytes, unit};
}

}  // namespace
}  // namespace ktd
