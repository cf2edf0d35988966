#include "pool_mailbox.h"

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
      server_(
          box, [&pool](const Mailbox& request) { pool.Forward(CallOf(request)); },
          pool.cpus().front()) {
  pool_.BeatAlso(&box.heartbeat);
}

PoolMailbox::~PoolMailbox() { pool_.BeatAlso(nullptr); }

}  // namespace ktd
