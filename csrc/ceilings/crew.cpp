#include "crew.h"

#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

#include "../worker_thread.h"
#include "spin_barrier.h"

namespace ktd {

struct Crew::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  std::uint64_t epoch = 0;  // grows with every run, and at the end
  bool stopping = false;
  std::size_t running = 0;
  std::size_t members = 0;
  const std::function<void(std::size_t)>* work = nullptr;
  SpinBarrier start;
};

Crew::Crew(const std::vector<int>& cpus) : pid_(getpid()), state_(std::make_unique<State>()) {
  threads_.reserve(cpus.size());
  try {
    for (std::size_t member = 0; member < cpus.size(); ++member) {
      threads_.push_back(StartWorkerThread("ktd-ceiling", [this, member] { Loop(member); }));
      PinThread(threads_.back(), cpus[member]);
    }
  } catch (...) {
    Stop();
    throw;
  }
}

Crew::~Crew() {
  if (getpid() == pid_) {
    Stop();
    return;
  }
  // The threads stayed with the parent: joining them, or taking apart what they wait for, would
  // wait for ever.
  static_cast<void>(state_.release());
  static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
}

void Crew::Stop() noexcept {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
    ++state_->epoch;
  }
  state_->wake.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Crew::Run(std::size_t members, const std::function<void(std::size_t)>& work) {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  state.work = &work;
  state.members = members;
  state.running = members;
  ++state.epoch;
  state.wake.notify_all();
  state.done.wait(lock, [&] { return state.running == 0; });
}

void Crew::Loop(std::size_t member) {
  State& state = *state_;
  std::uint64_t seen = 0;
  std::unique_lock lock(state.mutex);
  while (true) {
    state.wake.wait(lock, [&] { return state.epoch != seen; });
    seen = state.epoch;
    if (state.stopping) return;
    if (member >= state.members) continue;
    const std::function<void(std::size_t)>& work = *state.work;
    const std::size_t members = state.members;
    lock.unlock();
    state.start.Wait(members);
    work(member);
    lock.lock();
    if (--state.running == 0) state.done.notify_one();
  }
}

}  // namespace ktd
