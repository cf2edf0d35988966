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

// Which NUMA node each worker computes for, and how the units of every group are divided among
// nodes: node n has the part from shares[n] to shares[n + 1] of shares.back().
struct WorkNodes {
  std::span<const std::uint32_t> node_of;  // by worker
  std::span<const std::size_t> shares;     // nodes + 1 sums, from 0, ascending
};

// The unit at which node `node`'s part of `units` begins; its part ends where the next one begins.
std::size_t FirstUnitOf(std::span<const std::size_t> shares, std::size_t node,
                        std::size_t units) noexcept;

// Every worker has a share of equal cost, contiguous, so that it reads on where it read before. It
// takes its share in pieces that get smaller, each the third of what is left; with nothing left it
// takes a quarter of what the worker with the most has left, of its own node while there is any. So
// a worker whose core is slow, or
// lent to somebody else, does not hold up the rest for more than one piece.
class WorkList {
 public:
  explicit WorkList(std::size_t most_workers);

  // Splits the groups among the workers of `workers` (at least 1, at most most_workers), numbered
  // from 0. Not while anybody claims; the caller publishes it to the workers. Allocates only when
  // there is more than ever before.
  void Reset(std::span<const WorkGroup> groups, std::size_t workers);

  // The same where a worker's share is of its own node's units. A node that no worker computes for
  // leaves its units to the next one.
  void Reset(std::span<const WorkGroup> groups, const WorkNodes& nodes);

  // Gives `worker` its next range, or false when nothing is left for anybody. All workers together
  // get every unit once. Any number of workers at a time.
  bool Claim(std::size_t worker, WorkRange& range) noexcept;

 private:
  // Some units of one group, in the order of the nodes and then of the groups.
  struct Segment {
    std::size_t first;  // units in the segments before it
    std::size_t group;
    std::size_t begin;
  };
  struct alignas(kCacheLine) Share {
    std::atomic<std::size_t> next{0};  // of all units, in the order of the segments
    std::size_t end = 0;
  };

  bool HasWorker(std::size_t node) const noexcept;
  std::size_t AddSegments(std::span<const WorkGroup> groups, std::span<const std::size_t> shares,
                          std::size_t node);
  void Divide(std::span<const WorkGroup> groups, std::size_t segment, std::size_t total_cost);
  bool Take(Share& share, std::size_t part, WorkRange& range) noexcept;
  Share* Richest(std::size_t worker, bool own_node) noexcept;

  std::unique_ptr<Share[]> shares_;
  std::size_t workers_ = 0;
  std::size_t units_ = 0;
  bool one_node_ = true;
  std::vector<Segment> segments_;  // and one behind the last, which begins at units_
  std::vector<std::uint32_t> node_of_;
  std::vector<std::uint32_t> owners_;  // workers of the node being divided
};

}  // namespace ktd
