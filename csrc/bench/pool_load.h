// Work like a decode step's for a pool, without its memory traffic: two phases of arithmetic,
// divided by a work list.
#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

#include "thread_pool.h"
#include "work_list.h"

namespace ktd {

class PoolLoad {
 public:
  // Each of the two phases takes `threads` workers about `phase`.
  PoolLoad(std::size_t threads, std::chrono::microseconds phase);

  // Runs on `pool` for about `time` and returns how many steps a second were done.
  double StepsPerSecond(ThreadPool& pool, std::chrono::milliseconds time);

 private:
  void Step(ThreadPool& pool);
  static void Run(void* load, std::size_t phase, std::size_t worker, std::size_t workers);

  std::vector<WorkGroup> groups_;
  std::size_t rounds_;  // of the loop that a unit is
  WorkList lists_[2];
};

}  // namespace ktd
