#include "mailbox.h"

#include <unistd.h>

#include <exception>
#include <utility>

#include "worker_thread.h"

namespace ktd {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPollsPerClock = 64;
constexpr std::chrono::milliseconds kBeat{1};

std::uint32_t LoadWord(std::uint32_t& word, std::memory_order order) noexcept {
  return std::atomic_ref<std::uint32_t>(word).load(order);
}

void StoreWord(std::uint32_t& word, std::uint32_t value, std::memory_order order) noexcept {
  std::atomic_ref<std::uint32_t>(word).store(value, order);
}

}  // namespace

MailboxServer::MailboxServer(Mailbox& box, Compute compute, int cpu, Afterwards afterwards)
    : box_(box), compute_(std::move(compute)), afterwards_(std::move(afterwards)), pid_(getpid()) {
  thread_ = StartWorkerThread("ktd-mailbox", [this] { Loop(); });
  try {
    if (cpu >= 0) PinThread(thread_, cpu);
  } catch (...) {
    stopping_.store(true);
    wake_.Bump();
    wake_.Wake();
    thread_.join();
    throw;
  }
}

MailboxServer::~MailboxServer() {
  if (getpid() != pid_) {
    static_cast<void>(new std::thread(std::move(thread_)));  // stayed with the parent
    return;
  }
  stopping_.store(true);
  wake_.Bump();
  wake_.Wake();
  thread_.join();
}

void MailboxServer::BeginStep() noexcept {
  if (steps_.fetch_add(1) > 0) return;
  wake_.Bump();
  wake_.Wake();
}

void MailboxServer::EndStep() noexcept { steps_.fetch_sub(1); }

void MailboxServer::Beat() noexcept {
  // Whether two beats at once count as one does not matter; a locked instruction would.
  const std::atomic_ref<std::uint64_t> word(box_.heartbeat);
  word.store(word.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

std::string MailboxServer::LastFailure() const {
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

void MailboxServer::Loop() noexcept {
  Clock::time_point beaten{};
  while (true) {
    const std::uint32_t awake = wake_.value();
    if (Look()) continue;
    if (stopping_.load()) return;
    if (steps_.load() == 0) {
      wake_.Sleep(awake, kIdleLook);
      Beat();
      continue;
    }
    for (int i = 0; i < kPollsPerClock; ++i) {
      if (Look()) break;
      Pause();
    }
    if (const Clock::time_point now = Clock::now(); now - beaten >= kBeat) {
      Beat();
      beaten = now;
    }
  }
}

// Answers the flag if it is up.
bool MailboxServer::Look() noexcept {
  const std::uint32_t epoch = LoadWord(box_.epoch, std::memory_order_acquire);
  if (epoch == box_.answered) return false;
  std::uint32_t failed = 0;
  try {
    compute_(box_);
  } catch (const std::exception& error) {
    failed = 1;
    const std::lock_guard lock(failure_mutex_);
    failure_ = error.what();
  }
  Beat();
  StoreWord(box_.failed, failed, std::memory_order_relaxed);
  StoreWord(box_.answered, epoch, std::memory_order_release);
  if (afterwards_) afterwards_();
  return true;
}

}  // namespace ktd
