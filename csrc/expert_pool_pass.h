// One run of the pool's phases, between the two files that it is spread over.
#pragma once

#include "expert_pool.h"

namespace ktd {

struct ExpertPool::Pass {
  ExpertPool* pool;
  const LayerWeights* layer;
  ForwardCall call;
};

}  // namespace ktd
