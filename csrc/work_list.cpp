#include "work_list.h"

#include <algorithm>

namespace ktd {
namespace {

constexpr std::size_t kOneShare[] = {0, 1};

constexpr std::size_t kOwnPart = 3;
constexpr std::size_t kOthersPart = 4;

}  // namespace

WorkList::WorkList(std::size_t most_workers) : shares_(new Share[most_workers]) {}

std::size_t FirstUnitOf(std::span<const std::size_t> shares, std::size_t node,
                        std::size_t units) noexcept {
  return units * shares[node] / shares.back();
}

void WorkList::Reset(std::span<const WorkGroup> groups, std::size_t workers) {
  node_of_.assign(workers, 0);
  Reset(groups, {node_of_, kOneShare});
}

void WorkList::Reset(std::span<const WorkGroup> groups, const WorkNodes& nodes) {
  workers_ = nodes.node_of.size();
  if (nodes.node_of.data() != node_of_.data()) {
    node_of_.assign(nodes.node_of.begin(), nodes.node_of.end());
  }
  segments_.clear();
  units_ = 0;
  const std::size_t count = nodes.shares.size() - 1;
  one_node_ = count == 1;
  for (std::size_t node = 0; node < count; ++node) {
    owners_.clear();
    for (std::uint32_t worker = 0; worker < workers_; ++worker) {
      if (node_of_[worker] == node) owners_.push_back(worker);
    }
    if (owners_.empty()) continue;
    const std::size_t begin = segments_.size();
    std::size_t cost = AddSegments(groups, nodes.shares, node);
    // So do the units of the nodes before it that have no worker now.
    for (std::size_t other = (node + count - 1) % count; !HasWorker(other);
         other = (other + count - 1) % count) {
      cost += AddSegments(groups, nodes.shares, other);
    }
    Divide(groups, begin, cost);
  }
  segments_.push_back({units_, 0, 0});
}

bool WorkList::HasWorker(std::size_t node) const noexcept {
  return std::find(node_of_.begin(), node_of_.end(), node) != node_of_.end();
}

// Appends a node's part of every group, and returns what it costs.
std::size_t WorkList::AddSegments(std::span<const WorkGroup> groups,
                                  std::span<const std::size_t> shares, std::size_t node) {
  std::size_t cost = 0;
  for (std::size_t group = 0; group < groups.size(); ++group) {
    const std::size_t begin = FirstUnitOf(shares, node, groups[group].units);
    const std::size_t end = FirstUnitOf(shares, node + 1, groups[group].units);
    if (begin == end) continue;
    segments_.push_back({units_, group, begin});
    units_ += end - begin;
    cost += (end - begin) * groups[group].unit_cost;
  }
  return cost;
}

// Gives the segments from `segment` on to owners_, by cost.
void WorkList::Divide(std::span<const WorkGroup> groups, std::size_t segment,
                      std::size_t total_cost) {
  std::size_t before = 0;  // cost of the segments before this one
  std::size_t unit = segment < segments_.size() ? segments_[segment].first : units_;
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    Share& share = shares_[owners_[i]];
    share.next.store(unit, std::memory_order_relaxed);
    const std::size_t goal = total_cost * (i + 1) / owners_.size();
    for (; segment < segments_.size(); ++segment) {
      const std::size_t unit_cost = groups[segments_[segment].group].unit_cost;
      const std::size_t first = segments_[segment].first;
      const std::size_t next =
          segment + 1 < segments_.size() ? segments_[segment + 1].first : units_;
      const std::size_t end = before + (next - first) * unit_cost;
      if (end > goal && i + 1 < owners_.size()) {
        // The unit that a boundary falls into belongs to the worker on whose side it begins.
        unit = std::max(unit, first + (goal - before + unit_cost - 1) / unit_cost);
        break;
      }
      unit = next;
      before = end;
    }
    share.end = unit;
  }
}

bool WorkList::Take(Share& share, std::size_t part, WorkRange& range) noexcept {
  std::size_t next = share.next.load(std::memory_order_relaxed);
  while (next < share.end) {
    const auto behind =
        std::upper_bound(segments_.begin(), segments_.end(), next,
                         [](std::size_t unit, const Segment& at) { return unit < at.first; });
    const std::size_t wanted = std::max<std::size_t>((share.end - next) / part, 1);
    const std::size_t end = std::min(next + wanted, behind->first);
    if (!share.next.compare_exchange_weak(next, end, std::memory_order_relaxed)) continue;
    const Segment& segment = *(behind - 1);
    const std::size_t begin = segment.begin + (next - segment.first);
    range = {segment.group, begin, begin + (end - next)};
    return true;
  }
  return false;
}

// Who has the most units left, or null if nobody has any.
WorkList::Share* WorkList::Richest(std::size_t worker, bool own_node) noexcept {
  std::size_t most = 0;
  Share* richest = nullptr;
  for (std::size_t step = 1; step < workers_; ++step) {
    const std::size_t other = worker + step < workers_ ? worker + step : worker + step - workers_;
    if (own_node && node_of_[other] != node_of_[worker]) continue;
    Share& share = shares_[other];
    const std::size_t next = share.next.load(std::memory_order_relaxed);
    if (next >= share.end || share.end - next <= most) continue;
    most = share.end - next;
    richest = &share;
  }
  return richest;
}

bool WorkList::Claim(std::size_t worker, WorkRange& range) noexcept {
  if (Take(shares_[worker], kOwnPart, range)) return true;
  while (true) {
    Share* richest = Richest(worker, true);
    if (richest == nullptr && !one_node_) richest = Richest(worker, false);
    if (richest == nullptr) return false;
    if (Take(*richest, kOthersPart, range)) return true;
  }
}

}  // namespace ktd
