#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "checker.h"
#include "thread_pool.h"

namespace ktd::testing {
namespace {

using std::chrono::milliseconds;

// Each worker writes its cell in phase 0 and sums everybody's in phase 1.
struct Exchange {
  std::vector<std::size_t> cells;
  std::vector<std::size_t> sums;

  static void Run(void* context, std::size_t phase, std::size_t worker, std::size_t workers) {
    auto& self = *static_cast<Exchange*>(context);
    if (phase == 0) {
      self.cells[worker] = worker + 1;
    } else {
      self.sums[worker] = std::accumulate(self.cells.begin(),
                                          self.cells.begin() + static_cast<std::ptrdiff_t>(workers),
                                          std::size_t{0});
    }
  }
};

void CheckExchange(ThreadPool& pool, std::size_t team) {
  Exchange exchange{std::vector<std::size_t>(64), std::vector<std::size_t>(64)};
  pool.Run({2, Exchange::Run, &exchange}, team);
  for (std::size_t worker = 0; worker < 64; ++worker) {
    const std::size_t expected = worker < team ? team * (team + 1) / 2 : 0;
    EXPECT(exchange.sums[worker] == expected, "worker ", worker, " of ", team);
  }
}

// Whether every other thread of this process sleeps. One that spins is "R" however busy the host
// is, which a measured CPU time is not.
bool OthersSleep() {
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    if (task.path().filename() == std::to_string(gettid())) continue;
    std::ifstream stat(task.path() / "stat");
    std::string text;
    std::getline(stat, text);
    if (text.at(text.rfind(')') + 2) != 'S') return false;
  }
  return true;
}

}  // namespace

TEST(APhaseSeesAllOfThePhaseBefore) {
  for (const auto spin : {milliseconds(0), milliseconds(5)}) {
    for (const std::size_t threads : {1, 2, 3, 4, 5, 8, 17}) {
      ThreadPool pool(threads, {}, spin);
      for (int round = 0; round < 200; ++round) CheckExchange(pool, threads);
    }
  }
}

TEST(TheNumberOfParticipantsMayChangeFromRunToRun) {
  ThreadPool pool(6, {}, milliseconds(0));
  for (std::size_t round = 0; round < 300; ++round) CheckExchange(pool, round * 7 % 6 + 1);
}

TEST(SleepingWorkersAreWokenAndIdleOnesCostNothing) {
  ThreadPool pool(4, {}, milliseconds(1));
  CheckExchange(pool, 4);
  int polls = 0;
  while (!OthersSleep() && polls < 500) {
    usleep(10'000);
    ++polls;
  }
  EXPECT(polls < 500, "a worker of an idle pool still ran after 5 s");
  CheckExchange(pool, 4);
}

TEST(AFailureReachesTheCallerAndThePoolGoesOn) {
  ThreadPool pool(4, {}, milliseconds(0));
  struct Failing {
    std::size_t phase;
    std::size_t worker;
    std::atomic<int> later{0};

    static void Run(void* context, std::size_t phase, std::size_t worker, std::size_t) {
      auto& self = *static_cast<Failing*>(context);
      if (phase > self.phase) ++self.later;
      if (phase == self.phase && worker == self.worker) throw std::runtime_error("planted");
    }
  };
  for (std::size_t phase = 0; phase < 2; ++phase) {
    for (std::size_t worker = 0; worker < 4; ++worker) {
      Failing failing{phase, worker};
      const std::string message =
          MessageOf<std::runtime_error>([&] { pool.Run({2, Failing::Run, &failing}, 4); });
      EXPECT(message == "planted");
      EXPECT(failing.later == 0, "a phase ran after one that failed");
      CheckExchange(pool, 4);
    }
  }
}

TEST(WorkersLeaveSignalsToTheOtherThreads) {
  ThreadPool pool(3, {}, milliseconds(0));
  bool blocked[3] = {};
  const auto look = [](void* context, std::size_t, std::size_t worker, std::size_t) {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    static_cast<bool*>(context)[worker] = sigismember(&mask, SIGTERM) == 1;
  };
  pool.Run({1, look, blocked}, 3);
  EXPECT(!blocked[0] && blocked[1] && blocked[2]);
}

TEST(PoolsThatNeverRanEndCleanly) {
  for (int round = 0; round < 20; ++round) ThreadPool pool(5, {}, milliseconds(round % 2));
}

TEST(AForkedChildKnowsThatItHasNoWorkers) {
#ifdef __SANITIZE_THREAD__
  SKIP("ThreadSanitizer does not follow a fork of a process with threads");
#endif
  auto pool = std::make_unique<ThreadPool>(3, std::span<const int>{}, milliseconds(0));
  const pid_t child = fork();
  if (child == 0) {
    const bool usable = pool->UsableHere();
    pool.reset();  // must neither join nor crash
    _exit(usable ? 1 : 0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT(status == 0, "the child ended with ", status);
  CheckExchange(*pool, 3);
}

}  // namespace ktd::testing
