// Which workers take part in a run: one that has lost its core stays out for a while.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ktd {

// A pinned thread whose core another process takes holds every barrier until the scheduler gives
// the core back, milliseconds later; without it the others lose one part in n. Decides that trade,
// and tries the worker again later. Used by one thread at a time.
class Attendance {
 public:
  using Nanoseconds = std::chrono::nanoseconds;
  using TimePoint = std::chrono::steady_clock::time_point;

  // Shortest wait that counts: the scheduler's time slices are longer, ordinary noise is shorter.
  static constexpr Nanoseconds kLate = std::chrono::microseconds(300);
  static constexpr Nanoseconds kFirstAbsence = std::chrono::milliseconds(50);  // at most
  static constexpr Nanoseconds kLongestAbsence = std::chrono::milliseconds(400);

  explicit Attendance(std::size_t workers);

  // Chooses who takes part next: at most `wanted` workers, worker 0 always, those who stay out only
  // if they return by `now`. At least half of all can be chosen.
  std::span<const std::uint32_t> Choose(std::size_t wanted, TimePoint now);

  // True if Choose needs the time.
  bool AnyAbsent() const noexcept { return absent_ > 0; }

  // The chosen workers waited for `worker` for `wait`, after `work` of their own. Returns whether
  // it stays out from now on: if that costs less than the wait did. Worker 0 never does.
  bool Late(std::size_t worker, Nanoseconds wait, Nanoseconds work, TimePoint now);

  // Worker 0 was late like that: takes out the last worker that takes part, whose core worker 0 may
  // have. Returns it, or 0 if none can go.
  std::size_t MakeRoom(Nanoseconds wait, Nanoseconds work, TimePoint now);

  // Whether such a wait counts at all, for a team of `count`.
  static bool Counts(Nanoseconds wait, Nanoseconds work, std::size_t count) noexcept;

 private:
  struct Worker {
    bool absent = false;
    Nanoseconds absence{0};  // the last one's length
    TimePoint returns{};     // when it ends or ended
  };

  std::vector<Worker> workers_;
  std::vector<std::uint32_t> chosen_;
  std::size_t absent_ = 0;
  std::size_t wanted_ = 0;  // of chosen_, 0: choose anew
};

}  // namespace ktd
