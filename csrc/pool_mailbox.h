// A mailbox whose calls an expert pool computes.
#pragma once

#include "expert_pool.h"
#include "mailbox.h"

namespace ktd {

// While it lives, a call that comes through the mailbox is computed like ExpertPool::Forward, with
// the server's thread, on the pool's first CPU, as worker 0; the pool beats the mailbox's heart.
// Rows of tokens without an id stay as they are: the device knows them, and filling them costs a
// step.
class PoolMailbox {
 public:
  // Both outlive it. One mailbox for each pool.
  PoolMailbox(ExpertPool& pool, Mailbox& box);
  ~PoolMailbox();
  PoolMailbox(const PoolMailbox&) = delete;
  PoolMailbox& operator=(const PoolMailbox&) = delete;

  MailboxServer& server() noexcept { return server_; }

 private:
  ExpertPool& pool_;
  MailboxServer server_;
};

}  // namespace ktd
