#include "pool_mailbox.h"

#include <chrono>

namespace ktd {
namespace {

ForwardCall CallOf(const Mailbox& request) {
  return {request.layer,
          reinterpret_cast<const Bf16*>(request.x),
          reinterpret_cast<const std::int32_t*>(request.ids),
          reinterpret_cast<const float*>(request.weights),
          reinterpret_cast<float*>(request.out),
          request.tokens,
          request.top_k,
          /*sparse_out=*/true};
}

}  // namespace

PoolMailbox::PoolMailbox(ExpertPool& pool, Mailbox& box)
    : pool_(pool),
      server_(box, [this](const Mailbox& request) { Compute(request); }, pool.cpus().front()) {
  pool_.BeatAlso(&box.heartbeat);
}

PoolMailbox::~PoolMailbox() { pool_.BeatAlso(nullptr); }

void PoolMailbox::Compute(const Mailbox& request) {
  if (request.tokens < kLongTokens) {
    pool_.Forward(CallOf(request));
    return;
  }
  using Clock = std::chrono::steady_clock;
  const std::uint64_t before = pool_.bytes_read();
  const Clock::time_point began = Clock::now();
  pool_.Forward(CallOf(request));
  const auto took = std::chrono::nanoseconds(Clock::now() - began).count();
  nanoseconds_.fetch_add(static_cast<std::uint64_t>(took));
  bytes_.fetch_add(pool_.bytes_read() - before);
}

}  // namespace ktd
