// The whole forward, over threads, kernels, shapes and routings.
#include "checker.h"
#include "kernels/expert_kernels.h"
#include "mailbox_caller.h"
#include "moe_layer.h"

namespace ktd::testing {
namespace {

std::uint64_t RunAndCheck(ExpertPool& pool, const FormatCase& layer, Call& call,
                          const std::string& what) {
  const std::size_t handle = pool.AddLayer(layer.layer());
  const std::uint64_t bytes = pool.Forward(call.On(handle));
  ExpectRight(layer, call, what);
  return bytes;
}

void CheckForward(const Kernel& kernel) {
  const std::string name = kernel.name;
  ExpertPool one(kernel, Threads(1));
  ExpertPool three(kernel, Threads(3));
  for (const std::size_t tokens : {0, 1, 2, 17}) {
    const FormatCase small = RandomLayer(7, 53, 21);
    Call call = RandomCall(small, tokens, 3, 5);
    RunAndCheck(one, small, call, Concat(name, ", small, tokens ", tokens));
  }
  // Large enough for all three workers, with sizes that no unit divides.
  const FormatCase large = RandomLayer(3, 451, 301);
  Call first = RandomCall(large, 5, 2, 6);
  Call second = first;
  RunAndCheck(one, large, first, Concat(name, ", one thread"));
  RunAndCheck(three, large, second, Concat(name, ", three threads"));
  EXPECT(first.out == second.out, name, ": the number of threads changed the result");
}

// So many tokens that two workers take 64 rows of the last phase at a time; three have too few.
void CheckManyTokens(const Kernel& kernel) {
  ExpertPool two(kernel, Threads(2));
  ExpertPool three(kernel, Threads(3));
  const FormatCase layer = RandomLayer(3, 291, 24);
  Call first = RandomCall(layer, 520, 2, 8);
  Call second = first;
  RunAndCheck(two, layer, first, Concat(kernel.name, ", many tokens"));
  RunAndCheck(three, layer, second, Concat(kernel.name, ", many tokens, three threads"));
  EXPECT(first.out == second.out, kernel.name, ": rows at a time changed the result");
}

}  // namespace

TEST(ScalarForwardIsRight) { CheckForward(KernelOrSkip("scalar")); }
TEST(Avx2ForwardIsRight) { CheckForward(KernelOrSkip("avx2")); }
TEST(Avx512ForwardIsRight) { CheckForward(KernelOrSkip("avx512")); }
TEST(Avx512Bf16ForwardIsRight) { CheckForward(KernelOrSkip("avx512_bf16")); }
TEST(AmxForwardIsRight) { CheckForward(KernelOrSkip("amx")); }

// Experts with few tokens and with many, side by side in one call.
TEST(EmulatedAmxForwardIsRight) {
  const Kernel& best = KernelOrSkip("avx512_bf16");
  CheckForward({"emulated amx", best.required, {{&kBf16Avx512Bf16, &kBf16AmxEmulated, 3}}});
}

TEST(ScalarForwardOfManyTokensIsRight) { CheckManyTokens(KernelOrSkip("scalar")); }
TEST(Avx2ForwardOfManyTokensIsRight) { CheckManyTokens(KernelOrSkip("avx2")); }
TEST(AmxForwardOfManyTokensIsRight) { CheckManyTokens(KernelOrSkip("amx")); }
TEST(EmulatedAmxForwardOfManyTokensIsRight) {
  const Kernel& best = KernelOrSkip("avx512_bf16");
  CheckManyTokens({"emulated amx", best.required, {{&kBf16Avx512Bf16, &kBf16AmxEmulated, 3}}});
}

TEST(TokensWithoutAnExpertOfOursGetZeros) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(4, 33, 9);
  Call call = RandomCall(layer, 3, 2, 1);
  call.ids.assign(call.ids.size(), -1);
  EXPECT(RunAndCheck(pool, layer, call, "all masked") == 0);
  EXPECT(call.out == std::vector<float>(3 * 33, 0.0f));
}

TEST(OneExpertMayGetAllTokensAndATokenTheSameExpertTwice) {
  ExpertPool pool(SelectKernel("", DetectCpuFeatures()), Threads(2));
  const FormatCase layer = RandomLayer(4, 40, 24);
  Call call = RandomCall(layer, 70, 2, 1);
  call.ids.assign(call.ids.size(), 2);
  EXPECT(RunAndCheck(pool, layer, call, "one expert") == 1 * ExpertBytes(layer.layer()));
}

TEST(TheBytesAreThoseOfTheDistinctExperts) {
  ExpertPool pool(KernelTable().back(), Threads(1));
  const FormatCase layer = RandomLayer(8, 16, 8);
  Call call = RandomCall(layer, 3, 2, 1);
  call.ids = {1, 5, 5, -1, 7, 1};
  EXPECT(RunAndCheck(pool, layer, call, "bytes") == 3 * ExpertBytes(layer.layer()));
  EXPECT(pool.bytes_read() == 3 * ExpertBytes(layer.layer()) && pool.calls() == 1);
}

// A token takes 512 bytes of activations here, so this call takes three passes over the weights.
TEST(ALongCallIsComputedInPassesWithTheSameResult) {
  PoolOptions options = Threads(2);
  options.activation_bytes = 32 * 512;
  ExpertPool pool(SelectKernel("", 0), options);
  constexpr std::size_t kInner = 64;
  constexpr std::size_t kTopK = 4;
  const FormatCase layer = RandomLayer(2, 3, kInner);
  Call call = RandomCall(layer, 70, kTopK, 1);
  const std::size_t handle = pool.AddLayer(layer.layer());
  EXPECT(pool.Forward(call.On(handle)) == 2 * ExpertBytes(layer.layer()));
  for (const std::size_t token : {0, 31, 32, 69}) {
    Call single{{call.x.begin() + static_cast<std::ptrdiff_t>(token * 3),
                 call.x.begin() + static_cast<std::ptrdiff_t>(token * 3 + 3)},
                {call.ids.begin() + static_cast<std::ptrdiff_t>(token * kTopK),
                 call.ids.begin() + static_cast<std::ptrdiff_t>((token + 1) * kTopK)},
                {call.weights.begin() + static_cast<std::ptrdiff_t>(token * kTopK),
                 call.weights.begin() + static_cast<std::ptrdiff_t>((token + 1) * kTopK)},
                std::vector<float>(3),
                1,
                kTopK};
    pool.Forward(single.On(handle));
    for (std::size_t h = 0; h < 3; ++h) {
      EXPECT(single.out[h] == call.out[token * 3 + h], "token ", token, " column ", h);
    }
  }
}

TEST(TheCrossoverIsMeasuredOnceForEachFormat) {
  const Kernel& best = KernelOrSkip("avx2");
  PoolOptions options = Threads(1);
  options.measure_crossover = true;
  ExpertPool pool(best, options);
  EXPECT(pool.many_from(WeightFormat::kBf16) == 0);
  const FormatCase layer = RandomLayer(2, 512, 96);
  pool.AddLayer(layer.layer());
  const std::size_t measured = pool.many_from(WeightFormat::kBf16);
  EXPECT(measured >= 2 && measured <= 32, "measured ", measured);
  pool.AddLayer(layer.layer());
  EXPECT(pool.many_from(WeightFormat::kBf16) == measured);
}

}  // namespace ktd::testing
