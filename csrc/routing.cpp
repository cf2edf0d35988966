#include "routing.h"

#include <algorithm>

namespace ktd {

void Routing::Build(const std::int32_t* ids, const float* weights, std::size_t tokens,
                    std::size_t top_k, std::size_t num_experts) {
  next_.assign(num_experts, 0);
  const std::size_t slots = tokens * top_k;
  for (std::size_t i = 0; i < slots; ++i) {
    if (ids[i] >= 0) ++next_[static_cast<std::size_t>(ids[i])];
  }
  groups_.clear();
  std::size_t position = 0;
  for (std::size_t expert = 0; expert < num_experts; ++expert) {
    const std::size_t count = next_[expert];
    if (count == 0) continue;
    groups_.push_back({expert, position, position + count});
    next_[expert] = position;
    position += count;
  }
  tokens_.resize(position);
  weights_.resize(position);
  has_.assign(tokens, false);
  if (ones_.size() < position) ones_.resize(position, 1.0f);
  for (std::size_t i = 0; i < slots; ++i) {
    if (ids[i] < 0) continue;
    const std::size_t at = next_[static_cast<std::size_t>(ids[i])]++;
    tokens_[at] = static_cast<std::int32_t>(i / top_k);
    has_[i / top_k] = true;
    weights_[at] = weights[i];
  }
}

void Routing::Scale(float factor) noexcept {
  if (factor == 1.0f) return;
  for (float& weight : weights_) weight *= factor;
}

}  // namespace ktd
