// What callers may do wrong, and what goes wrong below them.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "checker.h"
#include "kernels/expert_kernels.h"
#include "moe_layer.h"
#include "topology.h"

namespace ktd::testing {
namespace {

const Kernel& Scalar() { return KernelTable().back(); }

std::atomic<int> failures_left{0};

void FailingGateUp(const GateUpJob& job) {
  if (failures_left.fetch_sub(1) > 0) throw std::runtime_error("planted");
  kBf16Scalar.gate_up(job);
}

void FailingDown(const DownJob& job) {
  if (failures_left.fetch_sub(1) > 0) throw std::runtime_error("planted");
  kBf16Scalar.down(job);
}

void FailingPrepare(const PrepareJob& job) {
  if (failures_left.fetch_sub(1) > 0) throw std::runtime_error("planted");
  std::memcpy(job.prepared + job.pair_begin * job.down.columns * sizeof(Bf16),
              job.act + job.pair_begin * job.down.columns * sizeof(Bf16),
              (job.pair_end - job.pair_begin) * job.down.columns * sizeof(Bf16));
}

std::size_t PreparedBytes(std::size_t intermediate, std::size_t count) {
  return kBf16Scalar.act_bytes(intermediate, count);
}

ExpertKernel Failing(void (*gate_up)(const GateUpJob&), void (*down)(const DownJob&)) {
  return {gate_up, down, kBf16Scalar.act_bytes, kBf16Scalar.scratch_bytes, kBf16Scalar.unit};
}

void CheckFailure(const ExpertKernel& failing, const std::string& expected) {
  const Kernel kernel{"failing", 0, {{&failing, &failing, 1}}};
  ExpertPool pool(kernel, {3, AllowedCpus()});
  const FormatCase layer = RandomLayer(6, 401, 301);
  Call call = RandomCall(layer, 1, 1, 2);
  call.ids = {4};
  failures_left = 0;
  pool.AddLayer(layer.layer());
  const std::size_t handle = pool.AddLayer(layer.layer());
  failures_left = 1;
  const std::string message = MessageOf<std::runtime_error>([&] { pool.Forward(call.On(handle)); });
  EXPECT(message == expected, message);
  failures_left = 0;
  pool.Forward(call.On(handle));
  ExpectRight(layer, call, "after a failure");
}

}  // namespace

TEST(AFailedTaskNamesLayerAndExpertAndThePoolGoesOn) {
  CheckFailure(Failing(FailingGateUp, kBf16Scalar.down),
               "layer 1, expert 4: gate and up failed: planted");
  CheckFailure(Failing(kBf16Scalar.gate_up, FailingDown),
               "layer 1, expert 4: down failed: planted");
  ExpertKernel preparing = Failing(kBf16Scalar.gate_up, kBf16Scalar.down);
  preparing.prepare = FailingPrepare;
  preparing.prepared_bytes = PreparedBytes;
  CheckFailure(preparing, "layer 1, expert 4: preparing activations failed: planted");
}

TEST(AnExpertThatDoesNotExistIsRefusedAndNothingIsWritten) {
  ExpertPool pool(Scalar(), {1, {}});
  const FormatCase layer = RandomLayer(4, 8, 4);
  const std::size_t handle = pool.AddLayer(layer.layer());
  for (const std::int32_t bad : {4, -2, INT32_MIN, INT32_MAX}) {
    Call call = RandomCall(layer, 3, 2, 1);
    call.ids[3] = bad;
    call.out.assign(call.out.size(), 9.0f);
    const std::string message = MessageOf<CheckError>([&] { pool.Forward(call.On(handle)); });
    EXPECT(message == Concat("token 1 asks for expert ", bad,
                             "; layer 0 has experts 0 to 3, and -1 for none"),
           message);
    EXPECT(call.out == std::vector<float>(call.out.size(), 9.0f));
    MessageOf<CheckError>([&] { pool.Submit(call.On(handle)); });
  }
}

TEST(ACallOnNoLayerOrNoMemoryIsRefused) {
  ExpertPool pool(Scalar(), {1, {}});
  const FormatCase layer = RandomLayer(4, 8, 4);
  Call call = RandomCall(layer, 3, 2, 1);
  EXPECT(Contains(MessageOf<CheckError>([&] { pool.Forward(call.On(0)); }), "handle 0"));
  const std::size_t handle = pool.AddLayer(layer.layer());
  ForwardCall null = call.On(handle);
  null.x = nullptr;
  EXPECT(Contains(MessageOf<CheckError>([&] { pool.Forward(null); }), "address 0"));
  ForwardCall none = call.On(handle);
  none.top_k = 0;
  EXPECT(Contains(MessageOf<CheckError>([&] { pool.Forward(none); }), "top_k"));
  EXPECT(pool.Forward({handle, nullptr, nullptr, nullptr, nullptr, 0, 2}) == 0);
}

TEST(ALayerOfNothingIsRefused) {
  ExpertPool pool(Scalar(), {1, {}});
  LayerWeights layer;
  layer.hidden = 8;
  layer.intermediate = 4;
  EXPECT(Contains(MessageOf<CheckError>([&] { pool.AddLayer(layer); }), "at least 1"));
  layer.num_experts = 1;
  EXPECT(Contains(MessageOf<CheckError>([&] { pool.AddLayer(layer); }), "address 0"));
}

TEST(ACpuThatMayNotBeUsedIsRefused) {
  const std::string message = MessageOf<CheckError>([] { ExpertPool(Scalar(), {1, {1 << 20}}); });
  EXPECT(Contains(message, "CPU 1048576 is not one"), message);
}

TEST(CallersFromSeveralThreadsTakeTurns) {
  ExpertPool pool(SelectKernel("", DetectCpuFeatures()), {3, AllowedCpus()});
  const FormatCase layer = RandomLayer(5, 351, 301);
  const std::size_t handle = pool.AddLayer(layer.layer());
  std::vector<Call> calls;
  for (unsigned i = 0; i < 4; ++i) calls.push_back(RandomCall(layer, 2, 2, i));
  std::vector<std::thread> callers;
  for (Call& call : calls) {
    callers.emplace_back([&pool, &call, handle] {
      for (int round = 0; round < 20; ++round) pool.Forward(call.On(handle));
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const Call& call : calls) ExpectRight(layer, call, "concurrent callers");
  EXPECT(pool.calls() == 80);
}

TEST(SubmittedCallsGiveWhatForwardGives) {
  ExpertPool pool(SelectKernel("", DetectCpuFeatures()), {2, AllowedCpus()});
  const FormatCase layer = RandomLayer(5, 351, 301);
  const std::size_t handle = pool.AddLayer(layer.layer());
  EXPECT(Contains(MessageOf<CheckError>([&] { pool.Wait(1); }), "nothing was submitted"));
  Call first = RandomCall(layer, 2, 2, 1);
  Call second = RandomCall(layer, 3, 2, 2);
  const std::uint64_t beats = pool.heartbeat().load();
  const std::uint64_t one = pool.Submit(first.On(handle));
  const std::uint64_t two = pool.Submit(second.On(handle));
  EXPECT(pool.Wait(two) % ExpertBytes(layer.layer()) == 0);
  EXPECT(pool.Wait(one) % ExpertBytes(layer.layer()) == 0);
  ExpectRight(layer, first, "first ticket");
  ExpectRight(layer, second, "second ticket");
  EXPECT(pool.heartbeat().load() > beats, "the heartbeat did not move");
}

TEST(AForkedChildIsRefusedWithASentence) {
#ifdef __SANITIZE_THREAD__
  SKIP("ThreadSanitizer does not follow a fork of a process with threads");
#endif
  auto pool = std::make_unique<ExpertPool>(Scalar(), PoolOptions{2, AllowedCpus()});
  const FormatCase layer = RandomLayer(4, 8, 4);
  Call call = RandomCall(layer, 3, 2, 1);
  const std::size_t handle = pool->AddLayer(layer.layer());
  pool->Wait(pool->Submit(call.On(handle)));
  const pid_t child = fork();
  if (child == 0) {
    int wrong = 1;
    try {
      pool->Forward(call.On(handle));
    } catch (const CheckError& error) {
      wrong = Contains(error.what(), "when the process forked") ? 0 : 2;
    }
    pool.reset();
    _exit(wrong);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT(status == 0, "the child ended with ", status);
}

}  // namespace ktd::testing
