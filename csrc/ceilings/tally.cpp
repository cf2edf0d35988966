#include "tally.h"

#include <time.h>

#include <algorithm>
#include <chrono>

namespace ktd {

double Now() noexcept {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double OnCore() noexcept {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void Tally::Start(double now, double on_core) noexcept {
  on_core_ = on_core;
  stamps_.clear();
  stamps_.push_back(now);
}

bool Tally::Next(double now, double seconds) noexcept {
  stamps_.push_back(now);
  return now - stamps_.front() < seconds && stamps_.size() < kMost;
}

// Amounts done by `time`, which lies between the first stamp and the last, with fractions.
double Tally::Done(double time) const noexcept {
  const auto after = std::upper_bound(stamps_.begin() + 1, stamps_.end() - 1, time);
  const auto whole = static_cast<double>(after - stamps_.begin() - 1);
  const double start = *(after - 1);
  return *after > start ? whole + (time - start) / (*after - start) : whole;
}

Rates RatesOf(std::span<const Tally> tallies, double amount, double slice) {
  double begin = tallies.front().stamps_.front();
  double end = tallies.front().stamps_.back();
  double mean = 0;
  double on_core = 0;
  for (const Tally& tally : tallies) {
    begin = std::max(begin, tally.stamps_.front());
    end = std::min(end, tally.stamps_.back());
    const double lasted = tally.stamps_.back() - tally.stamps_.front();
    mean += static_cast<double>(tally.stamps_.size() - 1) / lasted;
    on_core += tally.on_core_ / lasted / static_cast<double>(tallies.size());
  }
  // Threads that did not run at the same time have nothing but their means.
  if (end <= begin) return {mean * amount, mean * amount, on_core};
  const auto slices = static_cast<std::size_t>(std::max(1.0, (end - begin) / slice));
  const double length = (end - begin) / static_cast<double>(slices);
  std::vector<double> done(slices + 1, 0.0);
  for (std::size_t i = 0; i <= slices; ++i) {
    const double time = i == slices ? end : begin + length * static_cast<double>(i);
    for (const Tally& tally : tallies) done[i] += tally.Done(time);
  }
  for (std::size_t i = 0; i < slices; ++i) done[i] = done[i + 1] - done[i];
  done.pop_back();
  const auto middle = done.begin() + static_cast<std::ptrdiff_t>(slices / 2);
  std::nth_element(done.begin(), middle, done.end());
  // Threads that rarely have a core do nothing in the median slice; a ceiling is no lower than what
  // was seen.
  const double typical = std::max(*middle / length, mean);
  return {typical * amount, mean * amount, on_core};
}

}  // namespace ktd
