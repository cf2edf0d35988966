#include "thread_pool.h"

#include <unistd.h>

#include <stdexcept>
#include <system_error>
#include <utility>

#include "check.h"
#include "worker_thread.h"

namespace ktd {
namespace {

inline void Pause() noexcept { __builtin_ia32_pause(); }

}  // namespace

ThreadPool::ThreadPool(std::size_t threads, std::span<const int> cpus,
                       std::chrono::nanoseconds spin)
    : spin_(spin), pid_(getpid()) {
  workers_.reserve(threads - 1);  // Loop() indexes it while later workers are added
  for (std::size_t worker = 1; worker < threads; ++worker) {
    workers_.push_back(std::make_unique<Worker>());
  }
  try {
    for (std::size_t worker = 1; worker < threads; ++worker) {
      std::thread& thread = workers_[worker - 1]->thread;
      thread = StartWorkerThread(Concat("ktd-pool-", worker), [this, worker] { Loop(worker); });
      if (!cpus.empty()) PinThread(thread, cpus[worker % cpus.size()]);
    }
  } catch (const std::system_error& error) {
    Stop();
    throw std::runtime_error(Concat("the pool's ", threads, " threads cannot be started: ",
                                    error.what(), "; ask for fewer threads"));
  } catch (...) {
    Stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (UsableHere()) {
    Stop();
    return;
  }
  // The threads do not exist here, so they can be neither joined nor destroyed.
  static_cast<void>(new std::vector<std::unique_ptr<Worker>>(std::move(workers_)));
}

bool ThreadPool::UsableHere() const noexcept { return getpid() == pid_; }

void ThreadPool::Stop() noexcept {
  stopping_ = true;
  for (const auto& worker : workers_) {
    worker->epoch.fetch_add(1, std::memory_order_release);
    worker->epoch.notify_one();
  }
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

void ThreadPool::Run(const PhasedTask& task, std::size_t participants) {
  task_ = task;
  participants_ = participants;
  for (std::size_t worker = 1; worker < participants; ++worker) {
    std::atomic<std::uint32_t>& epoch = workers_[worker - 1]->epoch;
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_one();  // a system call only if it sleeps
  }
  Participate(0);
  if (!failed_.load(std::memory_order_acquire)) return;
  const std::exception_ptr failure = std::exchange(failure_, nullptr);
  failure_taken_.store(false, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  std::rethrow_exception(failure);
}

void ThreadPool::Loop(std::size_t worker) noexcept {
  std::uint32_t seen = 0;
  const std::atomic<std::uint32_t>& epoch = workers_[worker - 1]->epoch;
  while (true) {
    seen = Await(epoch, seen);
    if (stopping_) return;
    Participate(worker);
  }
}

// Runs every phase, each followed by a barrier; the last barrier ends the run, so a worker leaves
// without waiting there (the caller may then write the next task).
void ThreadPool::Participate(std::size_t worker) noexcept {
  const PhasedTask task = task_;
  const std::size_t participants = participants_;
  for (std::size_t phase = 0; phase < task.phases; ++phase) {
    if (!failed_.load(std::memory_order_acquire)) {
      try {
        task.run(task.context, phase, worker, participants);
      } catch (...) {
        RecordFailure();
      }
    }
    if (participants == 1) continue;
    // Read before arriving: nobody can release this barrier without us.
    const std::uint32_t before = released_.load(std::memory_order_relaxed);
    const bool last = phase + 1 == task.phases;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == participants) {
      arrived_.store(0, std::memory_order_relaxed);
      released_.store(before + 1, std::memory_order_release);
      released_.notify_all();
    } else if (!last || worker == 0) {
      Await(released_, before);
    }
  }
}

void ThreadPool::RecordFailure() noexcept {
  if (!failure_taken_.exchange(true, std::memory_order_relaxed)) {
    failure_ = std::current_exception();
  }
  failed_.store(true, std::memory_order_release);
}

// Waits until `word` differs from `old` and returns it: spins for spin_, then sleeps (futex).
std::uint32_t ThreadPool::Await(const std::atomic<std::uint32_t>& word,
                                std::uint32_t old) const noexcept {
  constexpr int kPausesPerClock = 32;  // the clock costs about as much as they do
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kPausesPerClock; ++i) {
      const std::uint32_t value = word.load(std::memory_order_acquire);
      if (value != old) return value;
      Pause();
    }
  } while (std::chrono::steady_clock::now() - start < spin_);
  word.wait(old, std::memory_order_acquire);
  return word.load(std::memory_order_acquire);
}

}  // namespace ktd
