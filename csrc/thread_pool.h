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
#include "arrival_tree.h"
#include "attendance.h"
#include "wait_word.h"

namespace ktd {

// Work in phases: `run` is called once for each phase and worker; no worker enters a phase before
// all have left the one before. If a call throws, the phases after it are skipped.
struct PhasedTask {
  std::size_t phases;
  void (*run)(void* context, std::size_t phase, std::size_t worker, std::size_t workers);
  void* context;
};

// Workers spin for a short while after their last task, then sleep: an idle pool uses no CPU. Who
// sleeps is woken in a tree. A worker that holds up the others because its core was taken stays out
// for a while (Attendance).
class ThreadPool {
 public:
  // `threads` >= 1 counts the caller of Run. Worker i is pinned to cpus[i % size]; worker 0, the
  // caller, is left where it is. Workers block all signals but their own faults. Throws
  // std::runtime_error if a thread cannot be started or pinned.
  ThreadPool(std::size_t threads, std::span<const int> cpus, std::chrono::nanoseconds spin);

  // Ends and joins the workers; in a forked child, which has none, it only forgets them.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t threads() const noexcept { return workers_.size() + 1; }

  // False in a forked child: the workers stayed with the parent.
  bool UsableHere() const noexcept;

  // Chooses the workers of the next Run, 1 <= wanted <= threads(): as many, or fewer while some
  // stay out. Place i of the result is worker i of the task's calls; worker 0 is the first.
  std::span<const std::uint32_t> Choose(std::size_t wanted);

  // Runs `task` on the workers chosen last, worker 0 in the calling thread, and returns when all
  // have finished. Rethrows the first exception of a worker; the pool stays usable. One caller at a
  // time (the owner's lock).
  void Run(const PhasedTask& task);
  void Run(const PhasedTask& task, std::size_t wanted) {
    Choose(wanted);
    Run(task);
  }

  // How often a worker was left out because it held up the others.
  std::uint64_t absences() const noexcept { return absences_.load(std::memory_order_relaxed); }

 private:
  using Nanoseconds = std::chrono::nanoseconds;

  struct Worker {
    WaitWord start;            // grows when there is a task, or the end, for it
    std::size_t position = 0;  // in the run; written before `start`
    int cpu = -1;
    std::thread thread;
  };

  void Loop(std::size_t worker) noexcept;
  void Participate(std::size_t worker, std::size_t position) noexcept;
  void WakeChildren(std::size_t position) noexcept;
  void Wait(std::size_t worker, std::size_t position, std::uint32_t before,
            std::chrono::steady_clock::time_point started) noexcept;
  void MakeRoomForCaller(Nanoseconds wait, Nanoseconds work);
  void RecordFailure() noexcept;
  void Stop() noexcept;

  const Nanoseconds spin_;
  const pid_t pid_;
  const bool pinned_;  // a core for each, so that one can be lost; others the scheduler moves
  std::vector<std::unique_ptr<Worker>> workers_;  // worker i is workers_[i - 1]
  Attendance attendance_;
  ArrivalTree arrivals_;
  std::atomic<std::uint64_t> absences_{0};

  // Written by the caller between runs, published through the workers' words.
  PhasedTask task_{};
  std::span<const std::uint32_t> team_;
  bool stopping_ = false;

  // Written by the last one at a barrier, published through `released_`.
  std::uint32_t last_ = 0;
  WaitWord released_;  // barriers passed, ever

  // The longest that worker 0 was waited for in a run, seen by the worker at position 1.
  alignas(kCacheLine) std::atomic<std::int64_t> caller_wait_{0};
  std::atomic<std::int64_t> caller_work_{0};
  alignas(kCacheLine) std::atomic<bool> failed_{false};
  std::atomic<bool> failure_taken_{false};
  std::exception_ptr failure_;  // written by the one that set failure_taken_
};

}  // namespace ktd
