// A random layer with a call on it, and the exact answer.
#pragma once

#include <vector>

#include "expert_pool.h"
#include "format_case.h"

namespace ktd::testing {

// The kernels called `name`, or the calling test is skipped with what this CPU lacks.
const Kernel& KernelOrSkip(const char* name);

// Experts in bf16.
FormatCase RandomLayer(std::size_t num_experts, std::size_t hidden, std::size_t intermediate);

struct Call {
  std::vector<Bf16> x;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<float> out;  // starts as NaN
  std::size_t tokens;
  std::size_t top_k;

  ForwardCall On(std::size_t layer) {
    return {layer, x.data(), ids.data(), weights.data(), out.data(), tokens, top_k};
  }
};

// Random ids, about a quarter of them -1; the same expert may come twice for a token.
Call RandomCall(const FormatCase& experts, std::size_t tokens, std::size_t top_k, unsigned seed);

// Fails unless call.out is what the layer gives.
void ExpectRight(const FormatCase& experts, const Call& call, const std::string& what);

}  // namespace ktd::testing
