// One call's (token, expert) pairs, grouped by expert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ktd {

// The pairs of one expert: positions [begin, end) of Routing::tokens() and weights().
struct ExpertGroup {
  std::size_t expert;
  std::size_t begin;
  std::size_t end;

  std::size_t count() const noexcept { return end - begin; }
};

// Reused from call to call, so that a decode step allocates nothing.
class Routing {
 public:
  // Groups ids and weights, both [tokens, top_k]; -1 is skipped, other ids are in [0, num_experts).
  // Groups come by ascending expert, pairs within a group by ascending token.
  void Build(const std::int32_t* ids, const float* weights, std::size_t tokens, std::size_t top_k,
             std::size_t num_experts);

  // Multiplies every weight by `factor`.
  void Scale(float factor) noexcept;

  std::span<const ExpertGroup> groups() const noexcept { return groups_; }
  const std::int32_t* tokens() const noexcept { return tokens_.data(); }
  const float* weights() const noexcept { return weights_.data(); }
  // As many ones as the largest group has pairs.
  const float* ones() const noexcept { return ones_.data(); }
  std::size_t pairs() const noexcept { return tokens_.size(); }
  // Whether any pair is this token's.
  bool Has(std::size_t token) const noexcept { return has_[token]; }

 private:
  std::vector<std::size_t> next_;  // by expert: its count, then where its next pair goes
  std::vector<ExpertGroup> groups_;
  std::vector<std::int32_t> tokens_;
  std::vector<bool> has_;  // by token
  std::vector<float> weights_;
  std::vector<float> ones_;
};

}  // namespace ktd
