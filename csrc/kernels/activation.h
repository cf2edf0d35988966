// What lies between the two products of an expert.
#pragma once

#include <cstdint>
#include <limits>

namespace ktd {

enum class ActivationKind : std::uint8_t {
  kSwish,  // g * sigmoid(alpha * g) * (u + beta), g = min(gate, limit), u = up clamped to +-limit
  kGelu,   // g * Phi(g) * u
  kGeluTanh,  // the same with Phi approximated through tanh
};

// SiLU is kSwish as it stands. gpt-oss is kSwish with alpha 1.702, limit 7, beta 1
// (https://github.com/openai/gpt-oss, torch/model.py); a model with swiglu_limit has the limit
// only.
struct Activation {
  ActivationKind kind = ActivationKind::kSwish;
  float alpha = 1.0f;
  float limit = std::numeric_limits<float>::infinity();
  float beta = 0.0f;
};

}  // namespace ktd
