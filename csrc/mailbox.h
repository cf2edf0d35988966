// One MoE layer's call through memory that the GPU writes, and the thread that answers it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "aligned.h"
#include "wait_word.h"

namespace ktd {

// The words both sides share, in memory of the caller's that starts at a cache line; all zero at
// first. A call: the device writes the data and the request, then, ordered behind them, `epoch`,
// which is not what it was. The pool answers with `out` written and, behind it, `answered` equal to
// `epoch`. There is one call at a time. Little-endian, addresses as the host sees them.
struct Mailbox {
  // Written by the device.
  alignas(kCacheLine) std::uint32_t epoch;
  std::uint32_t layer;  // the pool's handle
  std::uint32_t tokens;
  std::uint32_t top_k;
  std::uint64_t x;         // bf16 [tokens, hidden]
  std::uint64_t ids;       // int32 [tokens, top_k], -1: not the pool's
  std::uint64_t weights;   // float32 [tokens, top_k]
  std::uint64_t out;       // float32 [tokens, hidden]: the pool writes rows of tokens with an id
  std::uint32_t deferred;  // so many experts of a token may answer one call late
  std::uint32_t hidden;

  // Written by the pool.
  alignas(kCacheLine) std::uint32_t answered;
  std::uint32_t failed;  // 1: the call of this epoch failed and `out` is undefined

  // Written by the pool while it waits for a flag and while it computes: a device that waits for an
  // answer gives up when this has stood still.
  alignas(kCacheLine) std::uint64_t heartbeat;
};
static_assert(sizeof(Mailbox) == 3 * kCacheLine);

// Answers a mailbox on a thread of its own. While a launched step is unfinished it polls the flag;
// otherwise it sleeps, and looks at the flag now and then, so that one that comes when nobody
// expects it is answered too.
class MailboxServer {
 public:
  // Computes what the request says; runs on the server's thread. What it throws is the failure.
  using Compute = std::function<void(const Mailbox& request)>;
  // Runs on that thread when the answer has been given. Throws nothing.
  using Afterwards = std::function<void()>;

  static constexpr std::chrono::milliseconds kIdleLook{100};

  // `box` outlives the server. The thread is pinned to `cpu` unless that is negative.
  MailboxServer(Mailbox& box, Compute compute, int cpu, Afterwards afterwards = {});

  // Answers a flag that is there already, then joins; in a forked child it only forgets.
  ~MailboxServer();
  MailboxServer(const MailboxServer&) = delete;
  MailboxServer& operator=(const MailboxServer&) = delete;

  // A step that may use the mailbox is about to be launched; it is known to have finished. Steps
  // may overlap. From any thread.
  void BeginStep() noexcept;
  void EndStep() noexcept;

  // For a long computation: says that the pool lives. From any of its threads.
  void Beat() noexcept;

  // What the last call that failed threw, or "".
  std::string LastFailure() const;

 private:
  void Loop() noexcept;
  bool Look() noexcept;

  Mailbox& box_;
  const Compute compute_;
  const Afterwards afterwards_;
  const pid_t pid_;
  std::atomic<std::int32_t> steps_{0};  // launched and unfinished
  std::atomic<bool> stopping_{false};
  WaitWord wake_;  // grows when there is a step, or the end
  mutable std::mutex failure_mutex_;
  std::string failure_;
  std::thread thread_;  // declared last: starts when all else is there
};

}  // namespace ktd
