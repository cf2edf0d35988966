#include "wait_word.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace ktd {
namespace {

using Clock = std::chrono::steady_clock;

static_assert(sizeof(std::atomic<std::uint32_t>) == 4, "the kernel compares the word itself");

void FutexWait(const std::atomic<std::uint32_t>& word, std::uint32_t old, const timespec* limit) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, limit, nullptr, 0);
}

}  // namespace

void WaitWord::Wake() noexcept {
  if (sleepers_.load(std::memory_order_relaxed) == 0) return;
  syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

std::uint32_t WaitWord::Await(std::uint32_t old, Nanoseconds spin, Nanoseconds* waited) noexcept {
  constexpr int kPausesPerClock = 32;  // the clock costs about as much as they do
  if (waited != nullptr) *waited = Nanoseconds(0);
  Clock::time_point start{};
  Clock::time_point now{};
  do {
    for (int i = 0; i < kPausesPerClock; ++i) {
      const std::uint32_t value = word_.load(std::memory_order_acquire);
      if (value != old) {
        if (waited != nullptr) *waited = now - start;
        return value;
      }
      Pause();
    }
    now = Clock::now();
    if (start == Clock::time_point{}) start = now;
  } while (now - start < spin);
  // The increment is ordered before the look at the word, and the writer's store before its look at
  // the sleepers: one of the two sees the other.
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  std::uint32_t value = word_.load(std::memory_order_seq_cst);
  while (value == old) {
    FutexWait(word_, old, nullptr);
    value = word_.load(std::memory_order_acquire);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  if (waited != nullptr) *waited = Clock::now() - start;
  return value;
}

void WaitWord::Sleep(std::uint32_t old, Nanoseconds limit) noexcept {
  const timespec time{static_cast<time_t>(limit.count() / 1'000'000'000),
                      static_cast<long>(limit.count() % 1'000'000'000)};
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  if (word_.load(std::memory_order_seq_cst) == old) FutexWait(word_, old, &time);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace ktd
