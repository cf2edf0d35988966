// The device's side is played by the test: it writes data, then a flag, and waits for the answer.
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <memory>

#include "checker.h"
#include "mailbox.h"

namespace ktd::testing {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

class Device {
 public:
  explicit Device(Mailbox& box) : box_(box) {}

  // Publishes a call whose answer is layer + tokens, in `out`.
  void Publish(std::uint32_t layer, std::uint32_t tokens) {
    box_.layer = layer;
    box_.tokens = tokens;
    box_.out = reinterpret_cast<std::uintptr_t>(&sum_);
    sum_ = 0;
    std::atomic_ref<std::uint32_t>(box_.epoch).store(++epoch_, std::memory_order_release);
  }
  bool Answered() const {
    return std::atomic_ref<std::uint32_t>(box_.answered).load(std::memory_order_acquire) == epoch_;
  }
  bool WaitFor(milliseconds limit) const {
    const auto end = Clock::now() + limit;
    while (!Answered()) {
      if (Clock::now() > end) return false;
    }
    return true;
  }
  std::uint64_t sum() const { return sum_; }
  std::uint64_t Heartbeat() const {
    return std::atomic_ref<std::uint64_t>(box_.heartbeat).load(std::memory_order_relaxed);
  }

 private:
  Mailbox& box_;
  std::uint32_t epoch_ = 0;
  std::uint64_t sum_ = 0;
};

constexpr std::uint32_t kBroken = 1'000'000;

void AddUp(const Mailbox& request) {
  if (request.layer == kBroken) throw std::runtime_error("layer 9, expert 3: planted");
  *reinterpret_cast<std::uint64_t*>(request.out) = request.layer + request.tokens;
}

constexpr milliseconds kSoon{10'000};  // on a host that is busy with other tests

double CpuSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

TEST(CallsAreAnsweredOneAfterTheOther) {
  Mailbox box{};
  MailboxServer server(box, AddUp, -1);
  Device device(box);
  server.BeginStep();
  for (std::uint32_t layer = 0; layer < 2000; ++layer) {
    device.Publish(layer, 7);
    EXPECT(device.WaitFor(kSoon), "layer ", layer);
    EXPECT(device.sum() == layer + 7 && box.failed == 0, "layer ", layer);
  }
  server.EndStep();
}

TEST(AFlagThatComesLongAfterTheStepBeganIsAnswered) {
  Mailbox box{};
  MailboxServer server(box, AddUp, -1);
  Device device(box);
  for (const int pause : {0, 1, 300}) {
    server.BeginStep();
    usleep(static_cast<useconds_t>(pause) * 1000);
    device.Publish(1, 2);
    EXPECT(device.WaitFor(kSoon), "after ", pause, " ms");
    server.EndStep();
    usleep(static_cast<useconds_t>(pause) * 1000);
  }
}

TEST(AFlagThatNobodyExpectsIsAnsweredToo) {
  Mailbox box{};
  MailboxServer server(box, AddUp, -1);
  Device device(box);
  usleep(50'000);
  device.Publish(3, 4);
  EXPECT(device.WaitFor(kSoon));
  EXPECT(device.sum() == 7);
}

TEST(StepsMayOverlap) {
  Mailbox box{};
  MailboxServer server(box, AddUp, -1);
  Device device(box);
  server.BeginStep();
  server.BeginStep();
  server.EndStep();
  usleep(20'000);
  device.Publish(5, 5);
  EXPECT(device.WaitFor(kSoon));
  server.EndStep();
}

TEST(ACallThatFailsSaysSoAndTheNextIsAnswered) {
  Mailbox box{};
  MailboxServer server(box, AddUp, -1);
  Device device(box);
  server.BeginStep();
  device.Publish(kBroken, 1);
  EXPECT(device.WaitFor(kSoon));
  EXPECT(box.failed == 1);
  EXPECT(server.LastFailure() == "layer 9, expert 3: planted", server.LastFailure());
  device.Publish(1, 1);
  EXPECT(device.WaitFor(kSoon));
  EXPECT(box.failed == 0 && device.sum() == 2);
  server.EndStep();
}

TEST(TheHeartbeatGoesOnWhileTheFlagIsAwaitedAndWhileNothingRuns) {
  Mailbox box{};
  MailboxServer server(box, AddUp, -1);
  const Device device(box);
  for (const bool in_step : {true, false}) {
    if (in_step) server.BeginStep();
    for (int beats = 0; beats < 2; ++beats) {
      const std::uint64_t before = device.Heartbeat();
      const auto end = Clock::now() + milliseconds(2000);  // when the device would give up
      while (device.Heartbeat() == before) {
        EXPECT(Clock::now() < end, in_step ? "in a step" : "between steps");
        usleep(1000);
      }
    }
    if (in_step) server.EndStep();
  }
}

TEST(AServerWithoutAStepUsesNoCpu) {
  Mailbox box{};
  MailboxServer server(box, AddUp, -1);
  server.BeginStep();
  server.EndStep();
  usleep(20'000);
  const double before = CpuSeconds();
  usleep(500'000);
  const double used = CpuSeconds() - before;
  EXPECT(used < 0.05, used, " s of 0.5");
}

TEST(AFlagIsAnsweredBeforeTheServerEnds) {
  Mailbox box{};
  Device device(box);
  {
    MailboxServer server(box, AddUp, -1);
    device.Publish(2, 2);
  }
  EXPECT(device.Answered() && device.sum() == 4);
}

TEST(AForkedChildForgetsItsServer) {
#ifdef __SANITIZE_THREAD__
  SKIP("ThreadSanitizer does not follow a fork of a process with threads");
#endif
  Mailbox box{};
  auto server = std::make_unique<MailboxServer>(box, AddUp, -1);
  const pid_t child = fork();
  if (child == 0) {
    server.reset();  // must neither join nor crash
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT(status == 0, "the child ended with ", status);
}

}  // namespace ktd::testing
