// What this host can do at best: reading memory, and the arithmetic of each unit.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "crew.h"
#include "peak_loop.h"
#include "read_loop.h"
#include "tally.h"

namespace ktd {

// All loops, the slowest ISA first, whatever this CPU can run.
const std::vector<const PeakLoop*>& PeakLoops();

// Samples of the ceilings, each taken when it is asked for: a host's change from minute to minute.
// One caller at a time.
class Ceilings {
 public:
  // One thread for each of `cpus`, which are not empty, and `bytes` of memory to read.
  Ceilings(const std::vector<int>& cpus, std::size_t bytes);

  std::size_t threads() const noexcept { return crew_.size(); }

  // As ReadLoop's, after a check of `threads`.
  Rates ReadRate(std::size_t threads, double seconds, std::size_t ahead, double slice);
  std::vector<double> ReadPasses(std::size_t threads, std::size_t bytes, double seconds,
                                 std::size_t ahead);

  // Operations a second of `threads` that run the loop called `name` for `seconds`. Throws
  // CheckError for an unknown name, and for a loop that this CPU cannot run.
  Rates PeakRate(std::string_view name, std::size_t threads, double seconds, double slice);

  // Cycles a second of one core.
  double CoreHz(double seconds);

 private:
  void CheckThreads(std::size_t threads) const;
  Rates LoopRate(const PeakLoop& loop, std::size_t threads, double seconds, double slice);

  Crew crew_;
  ReadLoop read_;
  std::vector<Tally> tallies_;
};

}  // namespace ktd
