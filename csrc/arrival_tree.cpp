#include "arrival_tree.h"

#include <algorithm>

namespace ktd {
namespace {

constexpr std::size_t Groups(std::size_t count, std::size_t size) {
  return (count + size - 1) / size;
}

}  // namespace

ArrivalTree::ArrivalTree(std::size_t most) : leaves_(Groups(most, kFanIn)) {
  std::size_t nodes = leaves_;
  for (std::size_t level = leaves_; level > 1; nodes += level) level = Groups(level, kFanIn);
  nodes_ = std::make_unique<Node[]>(nodes);
}

bool ArrivalTree::Arrive(std::size_t position, std::size_t count) noexcept {
  Node* level = nodes_.get();
  // `width` is how many nodes the level has for the largest team, `count` how many arrive at it.
  for (std::size_t width = leaves_;; width = Groups(width, kFanIn)) {
    const std::size_t index = position / kFanIn;
    const auto expected = static_cast<std::uint32_t>(std::min(kFanIn, count - index * kFanIn));
    std::atomic<std::uint32_t>& arrived = level[index].arrived;
    if (expected > 1) {
      if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < expected) return false;
      arrived.store(0, std::memory_order_relaxed);
    }
    count = Groups(count, kFanIn);
    if (count == 1) return true;
    position = index;
    level += width;
  }
}

}  // namespace ktd
