// Counts a team's arrivals in a tree, so that no cache line is fought over by all of them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "aligned.h"

namespace ktd {

// The arriving half of a barrier; whoever arrives last releases the others (WaitWord). Everything
// that a thread wrote before it arrived is seen by the last one.
class ArrivalTree {
 public:
  // For teams of up to `most` threads, at least 1.
  explicit ArrivalTree(std::size_t most);

  // Thread `position` of `count` has arrived; true for the last one, which finds the tree ready for
  // the next round. Nobody arrives twice in a round.
  bool Arrive(std::size_t position, std::size_t count) noexcept;

 private:
  // Four share a line: 16 threads meet in two levels of four, where one counter takes 16 turns.
  static constexpr std::size_t kFanIn = 4;
  struct alignas(kCacheLine) Node {
    std::atomic<std::uint32_t> arrived{0};
  };

  std::unique_ptr<Node[]> nodes_;  // level by level, the leaves first
  const std::size_t leaves_;
};

}  // namespace ktd
