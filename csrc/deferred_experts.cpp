#include "deferred_experts.h"

#include <algorithm>
#include <utility>

namespace ktd {
namespace {

// Whether a pair is among the `most` of its token with the lowest weights.
bool IsLow(const float* weights, std::size_t top_k, std::size_t place, std::size_t most) {
  std::size_t above = 0;
  for (std::size_t other = 0; other < top_k; ++other) {
    const bool higher = weights[other] > weights[place];
    const bool first = other < place && weights[other] == weights[place];
    if (higher || first) ++above;
  }
  return above + most >= top_k;
}

}  // namespace

ForwardCall DeferredExperts::Divide(const ForwardCall& call, std::size_t most) {
  const std::size_t pairs = call.tokens * call.top_k;
  ids_.assign(call.ids, call.ids + pairs);
  now_.divided = true;
  now_.ids.assign(pairs, -1);
  now_.weights.assign(call.weights, call.weights + pairs);
  now_.rows.assign(call.tokens, 0);
  now_.x.resize(call.tokens * hidden_);
  now_.out.resize(call.tokens * hidden_);
  bool any = false;
  for (std::size_t token = 0; token < call.tokens; ++token) {
    const std::size_t first = token * call.top_k;
    for (std::size_t place = 0; place < call.top_k; ++place) {
      const std::size_t pair = first + place;
      if (ids_[pair] < 0 || !IsLow(call.weights + first, call.top_k, place, most)) continue;
      std::swap(now_.ids[pair], ids_[pair]);
      now_.rows[token] = 1;
    }
    if (now_.rows[token] == 0) continue;
    any = true;
    std::copy_n(call.x + token * hidden_, hidden_, now_.x.data() + token * hidden_);
  }
  now_.call = call;
  now_.call.x = now_.x.data();
  now_.call.ids = now_.ids.data();
  now_.call.weights = now_.weights.data();
  now_.call.out = now_.out.data();
  now_.call.sparse_out = true;
  if (!any) now_.call.tokens = 0;
  ForwardCall rest = call;
  rest.ids = ids_.data();
  return rest;
}

void DeferredExperts::Add(float* out, std::size_t tokens) {
  const bool ours = before_.divided && before_.call.tokens == tokens;
  before_.divided = false;
  if (!ours) return;
  for (std::size_t token = 0; token < tokens; ++token) {
    if (before_.rows[token] == 0) continue;
    float* row = out + token * hidden_;
    const float* late = before_.out.data() + token * hidden_;
    for (std::size_t i = 0; i < hidden_; ++i) row[i] += late[i];
  }
}

void DeferredExperts::Next() {
  std::swap(now_, before_);
  now_.divided = false;
}

}  // namespace ktd
