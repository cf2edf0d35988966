#include "work_list.h"

#include <algorithm>

namespace ktd {
namespace {

constexpr std::size_t kOwnPart = 3;
constexpr std::size_t kOthersPart = 4;

}  // namespace

WorkList::WorkList(std::size_t most_workers) : shares_(new Share[most_workers]) {}

void WorkList::Reset(std::span<const WorkGroup> groups, std::size_t workers) {
  workers_ = workers;
  ends_.clear();
  std::size_t total = 0;
  for (const WorkGroup& group : groups) total += group.units * group.unit_cost;
  std::size_t unit = 0;
  std::size_t cost = 0;
  std::size_t worker = 0;
  shares_[0].next.store(0, std::memory_order_relaxed);
  for (const WorkGroup& group : groups) {
    const std::size_t group_cost = group.units * group.unit_cost;
    // The unit that a boundary falls into belongs to the worker on whose side it begins.
    while (worker + 1 < workers && total * (worker + 1) / workers <= cost + group_cost) {
      const std::size_t boundary = total * (worker + 1) / workers - cost;
      const std::size_t at =
          unit + std::min(group.units, (boundary + group.unit_cost - 1) / group.unit_cost);
      shares_[worker].end = at;
      ++worker;
      shares_[worker].next.store(at, std::memory_order_relaxed);
    }
    unit += group.units;
    cost += group_cost;
    ends_.push_back(unit);
  }
  for (; worker < workers; ++worker) {
    shares_[worker].end = unit;
    if (worker + 1 < workers) shares_[worker + 1].next.store(unit, std::memory_order_relaxed);
  }
}

std::size_t WorkList::Left(const Share& share) const noexcept {
  const std::size_t next = share.next.load(std::memory_order_relaxed);
  return next < share.end ? share.end - next : 0;
}

bool WorkList::Take(Share& share, std::size_t part, WorkRange& range) noexcept {
  std::size_t next = share.next.load(std::memory_order_relaxed);
  while (next < share.end) {
    const auto group = std::upper_bound(ends_.begin(), ends_.end(), next);
    const std::size_t wanted = std::max<std::size_t>((share.end - next) / part, 1);
    const std::size_t end = std::min(next + wanted, *group);
    if (!share.next.compare_exchange_weak(next, end, std::memory_order_relaxed)) continue;
    const std::size_t before = group == ends_.begin() ? 0 : *(group - 1);
    range = {static_cast<std::size_t>(group - ends_.begin()), next - before, end - before};
    return true;
  }
  return false;
}

bool WorkList::Claim(std::size_t worker, WorkRange& range) noexcept {
  if (Take(shares_[worker], kOwnPart, range)) return true;
  while (true) {
    std::size_t most = 0;
    std::size_t richest = 0;
    for (std::size_t i = 1; i < workers_; ++i) {
      const std::size_t other = (worker + i) % workers_;
      const std::size_t left = Left(shares_[other]);
      if (left > most) {
        most = left;
        richest = other;
      }
    }
    if (most == 0) return false;
    if (Take(shares_[richest], kOthersPart, range)) return true;
  }
}

}  // namespace ktd
