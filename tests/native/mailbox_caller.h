// What a device does with a pool's mailbox.
#pragma once

#include <cstdint>

#include "expert_pool.h"
#include "pool_mailbox.h"

namespace ktd::testing {

// More threads than this machine may have cores: pinned round robin.
PoolOptions Threads(std::size_t threads);

// Writes a call, of which so many experts of a token may be late, and raises the flag.
void Publish(Mailbox& box, const ForwardCall& call, std::uint32_t epoch,
             std::uint32_t deferred = 0);

// Fails after 10 s.
void AwaitAnswer(Mailbox& box, std::uint32_t epoch);

}  // namespace ktd::testing
