// The part of a layer's call that is computed behind its answer, for the next layer's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "expert_pool.h"

namespace ktd {

// Experts of low weight may answer one layer late: while the device goes on with what lies between
// two layers, the pool computes them, and the next call's answer has them in it. That changes what
// a model computes. Of a token's top_k experts the `most` with the lowest weights are late, those
// of them that are the pool's; of equal weights the earlier place counts as the higher.
//
// For each call: Divide, the pool's Forward of what it returns, Add; then, behind the answer,
// Forward of late() and Next. One thread at a time.
class DeferredExperts {
 public:
  explicit DeferredExperts(std::size_t hidden) : hidden_(hidden) {}

  // What of `call` is to be computed now. The rest is copied, since the device writes the next call
  // where this one lies. Valid until Next.
  ForwardCall Divide(const ForwardCall& call, std::size_t most);

  // Adds what the call before has put off, and forgets it. An answer of other than as many tokens
  // is of another step, to which it does not belong.
  void Add(float* out, std::size_t tokens);

  // What this call puts off; without tokens if it is nothing.
  const ForwardCall& late() const noexcept { return now_.call; }

  // It has been computed.
  void Next();

  // Whether the call before was divided: the device then reads rows of the next answer for what
  // may be late in them, whether it has experts of its own for them or not.
  bool pending() const noexcept { return before_.divided; }

 private:
  struct Late {
    bool divided = false;
    ForwardCall call{};
    std::vector<std::uint8_t> rows;  // [tokens]: 1: the row has late experts
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    std::vector<Bf16> x;
    std::vector<float> out;
  };

  const std::size_t hidden_;
  Late now_;
  Late before_;
  std::vector<std::int32_t> ids_;  // of what is computed now
};

}  // namespace ktd
