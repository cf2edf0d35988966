// A mailbox whose calls an expert pool computes.
#pragma once

#include <atomic>
#include <cstdint>

#include "deferred_experts.h"
#include "expert_pool.h"
#include "mailbox.h"

namespace ktd {

// While it lives, a call that comes through the mailbox is computed like ExpertPool::Forward, with
// the server's thread, on the pool's first CPU, as worker 0; the pool beats the mailbox's heart.
// Rows of tokens without an id stay as they are: the device knows them, and filling them costs a
// step. A call that defers experts, and the one behind it, write all rows: the device may read one
// for what is late. Long calls defer nothing.
class PoolMailbox {
 public:
  // Both outlive it. One mailbox for each pool.
  PoolMailbox(ExpertPool& pool, Mailbox& box);
  ~PoolMailbox();
  PoolMailbox(const PoolMailbox&) = delete;
  PoolMailbox& operator=(const PoolMailbox&) = delete;

  MailboxServer& server() noexcept { return server_; }

  // What calls of at least kLongTokens tokens have taken so far, and the bytes of weights that they
  // read, each expert once a call: what an expert costs a long prefill on this host.
  static constexpr std::uint32_t kLongTokens = 256;
  std::uint64_t long_nanoseconds() const noexcept { return nanoseconds_.load(); }
  std::uint64_t long_bytes() const noexcept { return bytes_.load(); }

 private:
  void Compute(const Mailbox& request);
  void ComputeSome(ForwardCall call, std::size_t deferred);
  void ComputeLate() noexcept;

  ExpertPool& pool_;
  std::atomic<std::uint64_t> nanoseconds_{0};
  std::atomic<std::uint64_t> bytes_{0};
  DeferredExperts deferred_;
  bool divided_ = false;      // the call that is being answered was divided
  std::string late_failure_;  // what computing it threw: the next call fails for it
  MailboxServer server_;      // declared last: its thread uses all else
};

}  // namespace ktd
