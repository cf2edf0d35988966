#include "pool_mailbox.h"

#include <chrono>
#include <exception>
#include <stdexcept>
#include <utility>

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
      deferred_(box.hidden),
      server_(
          box, [this](const Mailbox& request) { Compute(request); }, pool.cpus().front(),
          [this] { ComputeLate(); }) {
  pool_.BeatAlso(&box.heartbeat);
}

PoolMailbox::~PoolMailbox() { pool_.BeatAlso(nullptr); }

void PoolMailbox::Compute(const Mailbox& request) {
  if (request.tokens < kLongTokens) return ComputeSome(CallOf(request), request.deferred);
  using Clock = std::chrono::steady_clock;
  const std::uint64_t before = pool_.bytes_read();
  const Clock::time_point began = Clock::now();
  pool_.Forward(CallOf(request));
  const auto took = std::chrono::nanoseconds(Clock::now() - began).count();
  nanoseconds_.fetch_add(static_cast<std::uint64_t>(took));
  bytes_.fetch_add(pool_.bytes_read() - before);
}

void PoolMailbox::ComputeSome(ForwardCall call, std::size_t deferred) {
  if (!late_failure_.empty()) throw std::runtime_error(std::exchange(late_failure_, {}));
  if (deferred == 0 && !deferred_.pending()) {
    pool_.Forward(call);
    return;
  }
  call.sparse_out = false;
  float* const out = call.out;
  if (deferred > 0) call = deferred_.Divide(call, deferred);
  pool_.Forward(call);
  deferred_.Add(out, call.tokens);
  divided_ = deferred > 0;
}

void PoolMailbox::ComputeLate() noexcept {
  if (!std::exchange(divided_, false)) return;
  try {
    if (deferred_.late().tokens > 0) pool_.Forward(deferred_.late());
  } catch (const std::exception& error) {
    late_failure_ = error.what();
  }
  deferred_.Next();
}

}  // namespace ktd
