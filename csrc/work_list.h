// Who computes what in one phase: units of work, split among workers beforehand and evened out at
// the end.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "aligned.h"

namespace ktd {

// Units that belong together, such as the rows of one expert, and cost the same.
struct WorkGroup {
  std::size_t units;
  std::size_t unit_cost;  // any measure, at least 1
};

// Units [begin, end) of one group.
struct WorkRange {
  std::size_t group;
  std::size_t begin;
  std::size_t end;
};

// Every worker has a share of equal cost, contiguous, so that it reads on where it read before. It
// takes its share in pieces that get smaller, each the third of what is left; with nothing left it
// takes a quarter of what the worker with the most has left. So a worker whose core is slow, or
// lent to somebody else, does not hold up the rest for more than one piece.
class WorkList {
 public:
  explicit WorkList(std::size_t most_workers);

  // Splits the groups among the workers of `workers` (at least 1, at most most_workers), numbered
  // from 0. Not while anybody claims; the caller publishes it to the workers.
  void Reset(std::span<const WorkGroup> groups, std::size_t workers);

  // Gives `worker` its next range, or false when nothing is left for anybody. All workers together
  // get every unit once. Any number of workers at a time.
  bool Claim(std::size_t worker, WorkRange& range) noexcept;

 private:
  struct alignas(kCacheLine) Share {
    std::atomic<std::size_t> next{0};
    std::size_t end = 0;
  };

  bool Take(Share& share, std::size_t part, WorkRange& range) noexcept;
  std::size_t Left(const Share& share) const noexcept;

  std::unique_ptr<Share[]> shares_;
  std::size_t workers_ = 0;
  std::vector<std::size_t> ends_;  // by group: its units and those before
};

}  // namespace ktd
