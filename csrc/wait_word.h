// A word that threads wait on: they spin for a while, then sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "aligned.h"

namespace ktd {

// Orders this thread's earlier stores before its later loads. An instruction, not
// std::atomic_thread_fence: ThreadSanitizer does not know that one, and needs none here.
inline void FullFence() noexcept { __asm__ volatile("lock; orq $0, (%%rsp)" ::: "memory", "cc"); }

inline void Pause() noexcept { __builtin_ia32_pause(); }

// One writer at a time, any number of waiters. A change is told in two steps, so that a writer of
// many words pays for one fence: Set each, FullFence, Wake each.
class alignas(kCacheLine) WaitWord {
 public:
  using Nanoseconds = std::chrono::nanoseconds;

  std::uint32_t value() const noexcept { return word_.load(std::memory_order_acquire); }

  void Set(std::uint32_t value) noexcept { word_.store(value, std::memory_order_release); }

  // Set for writers that do not know of each other: the value grows by one.
  void Bump() noexcept { word_.fetch_add(1, std::memory_order_seq_cst); }

  // Wakes all that sleep; a system call only if somebody does. Also from a thread that has seen the
  // new value, after a FullFence of its own.
  void Wake() noexcept;

  // Waits until the value is not `old`, and returns it; spins for `spin`, then sleeps. `waited` is
  // set to the time that it took, if that was longer than a few microseconds, else to 0.
  std::uint32_t Await(std::uint32_t old, Nanoseconds spin, Nanoseconds* waited = nullptr) noexcept;

  // Sleeps, without spinning, until the value is not `old` or `limit` has passed.
  void Sleep(std::uint32_t old, Nanoseconds limit) noexcept;

 private:
  std::atomic<std::uint32_t> word_{0};
  std::atomic<std::uint32_t> sleepers_{0};
};

}  // namespace ktd
