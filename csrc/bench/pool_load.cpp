#include "pool_load.h"

#include <algorithm>

namespace ktd {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kExperts = 8;
constexpr std::size_t kUnits = 96;  // of an expert; 8 rows of 768 are one

void Spend(std::size_t rounds) {
  for (std::size_t i = 0; i < rounds; ++i) __asm__ volatile("");
}

double SecondsPerRound() {
  constexpr std::size_t kRounds = 1'000'000;
  double best = 1.0;
  for (int attempt = 0; attempt < 10; ++attempt) {
    const auto start = Clock::now();
    Spend(kRounds);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best / kRounds;
}

}  // namespace

PoolLoad::PoolLoad(std::size_t threads, std::chrono::microseconds phase)
    : groups_(kExperts, {kUnits, 1}), lists_{WorkList(threads), WorkList(threads)} {
  const double unit = std::chrono::duration<double>(phase).count() * static_cast<double>(threads) /
                      (kExperts * kUnits);
  rounds_ = static_cast<std::size_t>(unit / SecondsPerRound()) + 1;
}

double PoolLoad::StepsPerSecond(ThreadPool& pool, std::chrono::milliseconds time) {
  const auto start = Clock::now();
  std::size_t steps = 0;
  auto now = start;
  for (; now - start < time; now = Clock::now(), ++steps) Step(pool);
  return static_cast<double>(steps) / std::chrono::duration<double>(now - start).count();
}

void PoolLoad::Step(ThreadPool& pool) {
  const std::size_t team = pool.Choose(pool.threads()).size();
  for (WorkList& list : lists_) list.Reset(groups_, team);
  pool.Run({2, Run, this});
}

void PoolLoad::Run(void* load, std::size_t phase, std::size_t worker, std::size_t) {
  auto& self = *static_cast<PoolLoad*>(load);
  for (WorkRange range{}; self.lists_[phase].Claim(worker, range);) {
    Spend((range.end - range.begin) * self.rounds_);
  }
}

}  // namespace ktd
