// The ceilings that `ktd bench kernels` measures: every loop runs, on one thread and on all.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "ceilings/ceilings.h"
#include "checker.h"
#include "cpu_features.h"
#include "topology.h"

namespace ktd {
namespace {

constexpr std::size_t kBytes = std::size_t{8} << 20;
constexpr double kShort = 1e-3;
constexpr double kSlice = 2e-4;

TEST(EveryMemberOfACrewWorksOnceARun) {
  Crew crew(AllowedCpus());
  std::vector<std::atomic<int>> counts(crew.size());
  for (int run = 0; run < 50; ++run) {
    crew.Run(crew.size(), [&](std::size_t member) { ++counts[member]; });
  }
  for (const auto& count : counts) EXPECT(count == 50, "one worked ", count.load(), " times");
}

TEST(ACrewCanRunWithFewerThanAll) {
  Crew crew(AllowedCpus());
  std::atomic<int> all{0};
  crew.Run(1, [&](std::size_t member) { all += member == 0 ? 1 : 100; });
  EXPECT(all == 1, all.load());
}

TEST(ACrewThatCannotBePinnedSaysSo) {
  const std::string message = testing::MessageOf<std::runtime_error>([] { Crew({1 << 14}); });
  EXPECT(testing::Contains(message, "pinned to CPU 16384"), message);
}

TEST(AForkedChildForgetsTheCeilings) {
  Ceilings ceilings(AllowedCpus(), kBytes);
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);  // a child that hangs ends with a signal
    ceilings.~Ceilings();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status ", status);
}

// Two threads do one amount each `step` seconds for ten seconds; `pause` holds both up once.
std::vector<Tally> TwoTallies(double step, double pause) {
  std::vector<Tally> tallies(2);
  for (Tally& tally : tallies) {
    double now = 100;
    tally.Start(now, 7);
    do {
      now += step;
      if (now > 105) now += std::exchange(pause, 0.0);
    } while (tally.Next(now, 10));
    tally.End(7 + 5);
    pause = 0;
  }
  return tallies;
}

TEST(EvenWorkHasOneRate) {
  const std::vector<Tally> tallies = TwoTallies(0.25, 0);
  for (const double slice : {0.01, 0.3, 1.0, 100.0}) {
    const Rates rates = RatesOf(tallies, 3, slice);
    EXPECT(std::abs(rates.mean - 24) < 1e-9, rates.mean);
    EXPECT(std::abs(rates.typical - 24) < 1e-9, rates.typical, " in slices of ", slice);
    EXPECT(std::abs(rates.on_core - 0.5) < 1e-9, rates.on_core);
  }
}

TEST(APauseLowersTheMeanAndNotWhatIsTypical) {
  const Rates rates = RatesOf(TwoTallies(0.25, 3), 3, 0.5);
  EXPECT(rates.mean < 21 && rates.mean > 19, rates.mean);
  EXPECT(std::abs(rates.typical - 24) < 1e-9, rates.typical);
}

TEST(MemoryIsReadByAnyNumberOfThreads) {
  Ceilings ceilings(AllowedCpus(), kBytes);
  for (std::size_t threads = 1; threads <= ceilings.threads(); ++threads) {
    const Rates rates = ceilings.ReadRate(threads, kShort, 4096, kSlice);
    EXPECT(std::isfinite(rates.mean) && rates.mean > 0, rates.mean);
    EXPECT(std::isfinite(rates.typical) && rates.typical > 0, rates.typical);
  }
}

TEST(PassesHaveOneTimeEachAndMayBeLargerThanTheMemory) {
  Ceilings ceilings(AllowedCpus(), kBytes);
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{12345}, kBytes, 3 * kBytes + 1}) {
    const std::vector<double> times = ceilings.ReadPasses(ceilings.threads(), bytes, kShort, 4096);
    EXPECT(!times.empty(), bytes);
    for (const double time : times) EXPECT(time > 0, time);
  }
}

TEST(EveryPeakOfThisCpuIsMeasuredAndTheOthersAreRefused) {
  Ceilings ceilings(AllowedCpus(), kBytes);
  const CpuFeatures have = DetectCpuFeatures();
  for (const PeakLoop* loop : PeakLoops()) {
    if ((loop->required & ~have) == 0) {
      const double rate = ceilings.PeakRate(loop->name, ceilings.threads(), kShort, kSlice).mean;
      EXPECT(std::isfinite(rate) && rate > 1e8, loop->name, " ", rate);
      continue;
    }
    const std::string message =
        testing::MessageOf<CheckError>([&] { ceilings.PeakRate(loop->name, 1, kShort, kSlice); });
    EXPECT(testing::Contains(message, "this CPU lacks"), message);
  }
}

TEST(ACoreHasAClock) {
  Ceilings ceilings({AllowedCpus().front()}, kBytes);
  const double hz = ceilings.CoreHz(kShort);
  EXPECT(hz > 1e8 && hz < 2e10, hz);
}

TEST(CeilingsRefuseWhatTheyCannotMeasure) {
  Ceilings ceilings(AllowedCpus(), kBytes);
  const std::size_t more = ceilings.threads() + 1;
  const std::string threads =
      testing::MessageOf<CheckError>([&] { ceilings.ReadRate(more, kShort, 0, kSlice); });
  EXPECT(testing::Contains(threads, "there are"), threads);
  const std::string name =
      testing::MessageOf<CheckError>([&] { ceilings.PeakRate("abacus", 1, kShort, kSlice); });
  EXPECT(testing::Contains(name, "no peak called 'abacus'"), name);
  const std::string bytes = testing::MessageOf<CheckError>([] { Ceilings(AllowedCpus(), 1); });
  EXPECT(testing::Contains(bytes, "a read loop needs"), bytes);
}

}  // namespace
}  // namespace ktd
