#include "thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <stdexcept>
#include <system_error>
#include <utility>

#include "check.h"
#include "topology.h"
#include "worker_thread.h"

namespace ktd {

using Clock = std::chrono::steady_clock;

ThreadPool::ThreadPool(std::size_t threads, std::span<const int> cpus,
                       std::chrono::nanoseconds spin)
    : spin_(spin),
      pid_(getpid()),
      pinned_(threads <= cpus.size()),
      attendance_(threads),
      arrivals_(threads) {
  workers_.reserve(threads - 1);  // Loop() indexes it while later workers are added
  for (std::size_t worker = 1; worker < threads; ++worker) {
    workers_.push_back(std::make_unique<Worker>());
  }
  try {
    for (std::size_t worker = 1; worker < threads; ++worker) {
      Worker& self = *workers_[worker - 1];
      if (!cpus.empty()) self.cpu = cpus[worker % cpus.size()];
      self.thread =
          StartWorkerThread(Concat("ktd-pool-", worker), [this, worker] { Loop(worker); });
      if (self.cpu >= 0) PinThread(self.thread.native_handle(), self.cpu);
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
  for (const auto& worker : workers_) worker->start.Set(worker->start.value() + 1);
  FullFence();
  for (const auto& worker : workers_) worker->start.Wake();
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

std::span<const std::uint32_t> ThreadPool::Choose(std::size_t wanted) {
  team_ = attendance_.Choose(wanted, attendance_.AnyAbsent() ? Clock::now() : Clock::time_point{});
  return team_;
}

void ThreadPool::Run(const PhasedTask& task) {
  task_ = task;
  // From the end: who is told knows that those behind it, whom it wakes, have been told before.
  for (std::size_t position = team_.size(); --position > 0;) {
    Worker& worker = *workers_[team_[position] - 1];
    worker.position = position;
    worker.start.Set(worker.start.value() + 1);
  }
  Participate(0, 0);
  if (const std::int64_t wait = caller_wait_.load(std::memory_order_relaxed); wait > 0) {
    caller_wait_.store(0, std::memory_order_relaxed);
    MakeRoomForCaller(Nanoseconds(wait), Nanoseconds(caller_work_.load(std::memory_order_relaxed)));
  }
  if (!failed_.load(std::memory_order_acquire)) return;
  const std::exception_ptr failure = std::exchange(failure_, nullptr);
  failure_taken_.store(false, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  std::rethrow_exception(failure);
}

void ThreadPool::Loop(std::size_t worker) noexcept {
  Worker& self = *workers_[worker - 1];
  std::uint32_t seen = 0;
  while (true) {
    seen = self.start.Await(seen, spin_);
    if (stopping_) return;
    Participate(worker, self.position);
  }
}

void ThreadPool::WakeChildren(std::size_t position) noexcept {
  const std::size_t first = 2 * position + 1;
  if (first >= team_.size()) return;
  FullFence();
  workers_[team_[first] - 1]->start.Wake();
  if (first + 1 < team_.size()) workers_[team_[first + 1] - 1]->start.Wake();
}

// Runs every phase, each followed by a barrier; the last barrier ends the run, so a worker leaves
// without waiting there (the caller may then write the next task).
void ThreadPool::Participate(std::size_t worker, std::size_t position) noexcept {
  WakeChildren(position);
  const PhasedTask task = task_;
  const std::size_t count = team_.size();
  for (std::size_t phase = 0; phase < task.phases; ++phase) {
    const Clock::time_point started = Clock::now();
    if (!failed_.load(std::memory_order_acquire)) {
      try {
        task.run(task.context, phase, position, count);
      } catch (...) {
        RecordFailure();
      }
    }
    if (count == 1) continue;
    // Read before arriving: nobody can release this barrier without us.
    const std::uint32_t before = released_.value();
    const bool waits = phase + 1 < task.phases || worker == 0;
    if (arrivals_.Arrive(position, count)) {
      last_ = static_cast<std::uint32_t>(worker);
      released_.Set(before + 1);
      FullFence();
      released_.Wake();
    } else if (waits) {
      Wait(worker, position, before, started);
    }
  }
}

// Waits for the barrier's release; one of the team looks at who kept it waiting.
void ThreadPool::Wait(std::size_t worker, std::size_t position, std::uint32_t before,
                      Clock::time_point started) noexcept {
  Nanoseconds wait{0};
  released_.Await(before, spin_, &wait);
  if (!pinned_ || position > 1 || wait <= Attendance::kLate) return;
  const Clock::time_point now = Clock::now();
  const Nanoseconds work = now - started - wait;
  if (worker == 0) {
    if (attendance_.Late(last_, wait, work, now)) {
      absences_.fetch_add(1, std::memory_order_relaxed);
    }
  } else if (last_ == 0 && Attendance::Counts(wait, work, team_.size())) {
    caller_work_.store(work.count(), std::memory_order_relaxed);
    caller_wait_.store(wait.count(), std::memory_order_relaxed);
  }
}

// The caller cannot stay out, but it can have another core: a worker that stays out changes places
// with it. A caller that is not pinned to a core is moved by the scheduler as soon as one is idle.
void ThreadPool::MakeRoomForCaller(Nanoseconds wait, Nanoseconds work) {
  const std::size_t spare = attendance_.MakeRoom(wait, work, Clock::now());
  if (spare == 0) return;
  absences_.fetch_add(1, std::memory_order_relaxed);
  Worker& worker = *workers_[spare - 1];
  const int taken = sched_getcpu();
  if (taken < 0 || worker.cpu == taken) return;
  try {
    const bool pinned = AllowedCpus().size() == 1;
    PinThread(worker.thread.native_handle(), taken);
    if (pinned) PinThread(pthread_self(), worker.cpu);
    worker.cpu = taken;
  } catch (const std::exception&) {
    // Where they are is as good a place, only slower.
  }
}

void ThreadPool::RecordFailure() noexcept {
  if (!failure_taken_.exchange(true, std::memory_order_relaxed)) {
    failure_ = std::current_exception();
  }
  failed_.store(true, std::memory_order_release);
}

}  // namespace ktd
