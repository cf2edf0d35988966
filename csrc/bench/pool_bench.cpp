// What the pool costs by itself, and what is left of it when another process takes a core.
//
//   pool_bench [threads]
//
// One line for each figure, in the order of scripts/gpu_host/pool.sh's text.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "busy_process.h"
#include "mailbox.h"
#include "pool_load.h"
#include "thread_pool.h"
#include "topology.h"
#include "worker_thread.h"

namespace ktd {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr microseconds kSpin{50};

double Microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

void Print(const char* what, std::size_t threads, std::vector<double> times) {
  std::sort(times.begin(), times.end());
  std::printf("%-44s threads %3zu  median %8.2f us  p99 %8.2f us\n", what, threads,
              times[times.size() / 2], times[times.size() * 99 / 100]);
  std::fflush(stdout);
}

void Nothing(void*, std::size_t, std::size_t, std::size_t) {}

// One barrier: a run of many empty phases, divided by their number.
void MeasureBarrier(std::size_t threads, const std::vector<int>& cpus) {
  constexpr std::size_t kPhases = 100;
  ThreadPool pool(threads, cpus, kSpin);
  std::vector<double> times;
  for (int run = 0; run < 2000; ++run) {
    const auto start = Clock::now();
    pool.Run({kPhases, Nothing, nullptr}, threads);
    times.push_back(Microseconds(Clock::now() - start) / kPhases);
  }
  Print("barrier, workers spinning", threads, times);
}

// A run of two empty phases, after a pause in which the workers spin or fall asleep.
void MeasureRun(const char* what, std::size_t threads, const std::vector<int>& cpus,
                microseconds pause, int runs) {
  ThreadPool pool(threads, cpus, kSpin);
  std::vector<double> times;
  for (int run = 0; run < runs; ++run) {
    if (pause > kSpin) usleep(static_cast<useconds_t>(pause.count()));
    const auto start = Clock::now();
    pool.Run({2, Nothing, nullptr}, threads);
    times.push_back(Microseconds(Clock::now() - start));
  }
  Print(what, threads, times);
}

// From the flag to the answer's flag: the caller of this plays the device, on a core of its own
// where there is one.
void MeasureMailbox(std::size_t threads, const std::vector<int>& cpus, bool with_pool) {
  alignas(kCacheLine) Mailbox box{};
  const std::size_t workers = with_pool ? std::max<std::size_t>(threads - 1, 1) : 1;
  ThreadPool pool(workers, cpus, kSpin);
  MailboxServer server(
      box,
      [&](const Mailbox&) {
        if (with_pool) pool.Run({2, Nothing, nullptr}, workers);
      },
      cpus.front());
  PinThread(pthread_self(), cpus.back());
  server.BeginStep();
  std::vector<double> times;
  const std::atomic_ref<std::uint32_t> epoch(box.epoch);
  const std::atomic_ref<std::uint32_t> answered(box.answered);
  for (std::uint32_t call = 1; call <= 20'000; ++call) {
    const auto wait = Clock::now() + microseconds(20);  // as a GPU kernel would between two calls
    while (Clock::now() < wait) Pause();
    const auto start = Clock::now();
    epoch.store(call, std::memory_order_release);
    while (answered.load(std::memory_order_acquire) != call) {
    }
    times.push_back(Microseconds(Clock::now() - start));
  }
  server.EndStep();
  Print(with_pool ? "flag to answer, two empty phases" : "flag to answer, empty expert set",
        workers, times);
}

// Steps with a core taken, relative to (n - 1) / n of the steps without.
void MeasureStolenCore(const char* what, std::size_t threads, const std::vector<int>& cpus,
                       std::size_t victim) {
  ThreadPool pool(threads, cpus, kSpin);
  PoolLoad load(threads, microseconds(200));
  double alone = 0;
  double disturbed = 0;
  constexpr int kRounds = 2;
  for (int round = 0; round < kRounds; ++round) {
    alone += load.StepsPerSecond(pool, milliseconds(1000));
    const BusyProcess busy(cpus[victim]);
    disturbed += load.StepsPerSecond(pool, milliseconds(1500));
  }
  const double share = static_cast<double>(threads - 1) / static_cast<double>(threads);
  std::printf("%-44s threads %3zu  %8.0f steps/s alone  %8.0f disturbed  %.3f of (n-1)/n\n", what,
              threads, alone / kRounds, disturbed / kRounds, disturbed / alone / share);
  std::fflush(stdout);
}

int Main(int arguments, char** values) {
  const std::vector<int> cpus = OnePerCore(AllowedCpus(), "/sys/devices/system/cpu");
  const std::size_t all = arguments > 1 ? std::stoul(values[1]) : cpus.size();
  if (all < 2 || all > cpus.size()) {
    std::fprintf(stderr, "pool_bench takes 2 to %zu threads, one for each core\n", cpus.size());
    return 2;
  }
  for (std::size_t threads = 2; threads < all; threads *= 2) MeasureBarrier(threads, cpus);
  MeasureBarrier(all, cpus);
  MeasureRun("run of two phases, workers spinning", all, cpus, microseconds(0), 20'000);
  MeasureRun("run of two phases, workers asleep", all, cpus, milliseconds(2), 1000);
  MeasureStolenCore("a worker's core taken", all, cpus, all - 1);
  MeasureStolenCore("the caller's core taken, caller not pinned", all, cpus, 0);
  std::thread pinned([&] {
    PinThread(pthread_self(), cpus.front());
    MeasureStolenCore("the caller's core taken, caller pinned", all, cpus, 0);
  });
  pinned.join();
  std::thread device([&] {
    MeasureMailbox(all, cpus, false);
    MeasureMailbox(all, cpus, true);
  });
  device.join();
  return 0;
}

}  // namespace
}  // namespace ktd

int main(int arguments, char** values) { return ktd::Main(arguments, values); }
