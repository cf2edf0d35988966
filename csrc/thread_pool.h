// A persistent, pinned pool whose calling thread is one of the workers.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "aligned.h"

namespace ktd {

// Work in phases: `run` is called once for each phase and worker; no worker enters a phase before
// all have left the one before. If a call throws, the phases after it are skipped.
struct PhasedTask {
  std::size_t phases;
  void (*run)(void* context, std::size_t phase, std::size_t worker, std::size_t workers);
  void* context;
};

// Workers spin for a short while after their last task, then sleep: an idle pool uses no CPU.
class ThreadPool {
 public:
  // `threads` >= 1 counts the caller of Run. Worker i is pinned to cpus[i % size]; worker 0, the
  // caller, is left where it is. Workers block all signals. Throws std::runtime_error if a thread
  // cannot be started or pinned.
  ThreadPool(std::size_t threads, std::span<const int> cpus, std::chrono::nanoseconds spin);

  // Ends and joins the workers; in a forked child, which has none, it only forgets them.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t threads() const noexcept { return workers_.size() + 1; }

  // False in a forked child: the workers stayed with the parent.
  bool UsableHere() const noexcept;

  // Runs `task` on workers 0 .. participants - 1, 1 <= participants <= threads(), worker 0 in the
  // calling thread, and returns when all have finished. Rethrows the first exception of a worker;
  // the pool stays usable. One caller at a time (the owner's lock).
  void Run(const PhasedTask& task, std::size_t participants);

 private:
  struct alignas(kCacheLine) Worker {
    std::atomic<std::uint32_t> epoch{0};  // grows when there is a task, or the end, for it
    std::thread thread;
  };

  void Loop(std::size_t worker) noexcept;
  void Participate(std::size_t worker) noexcept;
  void Arrive() noexcept;
  std::uint32_t Await(const std::atomic<std::uint32_t>& word, std::uint32_t old) const noexcept;
  void RecordFailure() noexcept;
  void Stop() noexcept;

  const std::chrono::nanoseconds spin_;
  const pid_t pid_;
  std::vector<std::unique_ptr<Worker>> workers_;  // worker i is workers_[i - 1]

  // Written by the caller between runs, published through the epochs.
  PhasedTask task_{};
  std::size_t participants_ = 0;
  bool stopping_ = false;

  alignas(kCacheLine) std::atomic<std::uint32_t> arrived_{0};   // workers at the barrier
  alignas(kCacheLine) std::atomic<std::uint32_t> released_{0};  // barriers passed, ever
  alignas(kCacheLine) std::atomic<bool> failed_{false};
  std::atomic<bool> failure_taken_{false};
  std::exception_ptr failure_;  // written by the one that set failure_taken_
};

}  // namespace ktd
