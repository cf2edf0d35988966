#include "attendance.h"

#include <algorithm>

namespace ktd {

Attendance::Attendance(std::size_t workers) : workers_(workers) { chosen_.reserve(workers); }

std::span<const std::uint32_t> Attendance::Choose(std::size_t wanted, TimePoint now) {
  for (std::size_t worker = 1; absent_ > 0 && worker < workers_.size(); ++worker) {
    if (!workers_[worker].absent || now < workers_[worker].returns) continue;
    workers_[worker].absent = false;
    --absent_;
    wanted_ = 0;
  }
  if (wanted == wanted_) return chosen_;
  wanted_ = wanted;
  chosen_.clear();
  for (std::size_t worker = 0; worker < workers_.size() && chosen_.size() < wanted; ++worker) {
    if (!workers_[worker].absent) chosen_.push_back(static_cast<std::uint32_t>(worker));
  }
  return chosen_;
}

bool Attendance::Counts(Nanoseconds wait, Nanoseconds work, std::size_t count) noexcept {
  // Without one of n workers every phase takes work / (n - 1) longer. Twice that, as a single wait
  // may be an accident and an absence lasts for many phases; and not for less than half of the
  // work, as the pieces that a long phase is divided into may be that large.
  if (count <= 1 || wait <= kLate) return false;
  return wait > std::max(2 * work / static_cast<std::int64_t>(count - 1), work / 2);
}

bool Attendance::Late(std::size_t worker, Nanoseconds wait, Nanoseconds work, TimePoint now) {
  const std::size_t count = chosen_.size();
  if (worker == 0 || !Counts(wait, work, count)) return false;
  Worker& late = workers_[worker];
  if (late.absent || 2 * (absent_ + 1) > workers_.size()) return false;
  // Late again soon after it returned: whatever takes the core is still there. If not, an absence
  // that costs about twice the wait.
  const bool again = late.absence > Nanoseconds(0) && now < late.returns + 2 * kFirstAbsence;
  const Nanoseconds first = 2 * wait * static_cast<std::int64_t>(count);
  late.absence =
      again ? std::min(2 * late.absence, kLongestAbsence) : std::min(first, kFirstAbsence);
  late.returns = now + late.absence;
  late.absent = true;
  ++absent_;
  wanted_ = 0;
  return true;
}

std::size_t Attendance::MakeRoom(Nanoseconds wait, Nanoseconds work, TimePoint now) {
  const std::size_t last = chosen_.empty() ? 0 : chosen_.back();
  return Late(last, wait, work, now) ? last : 0;
}

}  // namespace ktd
