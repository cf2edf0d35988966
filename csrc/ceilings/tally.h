// Who did how much by when: what the rate of several threads follows from.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace ktd {

// Seconds of a clock that all threads share.
double Now() noexcept;

// Seconds that this thread has been on a core.
double OnCore() noexcept;

// Amounts a second of all threads together. `typical` is the median over slices of time, so it is
// not lowered by what other work takes away now and then, as a median call of a kernel is not, and
// not below `mean`, which is over the whole time.
struct Rates {
  double typical = 0;
  double mean = 0;
  double on_core = 0;  // the share of the time that the threads had a core, 1 on a quiet host
};

// One thread's record: equal amounts, and when each was done.
class alignas(64) Tally {
 public:
  // Makes room for the longest run; the memory is not touched yet.
  Tally() { stamps_.reserve(kMost); }

  void Start(double now, double on_core) noexcept;

  // One more amount is done; false when `seconds` have passed since the start.
  bool Next(double now, double seconds) noexcept;

  void End(double on_core) noexcept { on_core_ = on_core - on_core_; }

 private:
  friend Rates RatesOf(std::span<const Tally> tallies, double amount, double slice);
  static constexpr std::size_t kMost = std::size_t{1} << 18;

  double Done(double time) const noexcept;

  double on_core_ = 0;
  std::vector<double> stamps_;  // the start, then the end of each amount
};

// Of threads that ran at the same time, each `amount` between two stamps, in slices of about
// `slice` seconds, at least one.
Rates RatesOf(std::span<const Tally> tallies, double amount, double slice);

}  // namespace ktd
