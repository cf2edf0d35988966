// bf16 kernels at the ends of the range of numbers, where every value can be named.
#include <cmath>
#include <limits>

#include "expert_run.h"
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr std::size_t kLength = 75;
constexpr std::size_t kRows = 43;

struct Expert {
  std::vector<Bf16> w13;
  std::vector<Bf16> w2;
  std::size_t hidden;
  std::size_t intermediate;

  LayerWeights Layer() const {
    LayerWeights layer;
    layer.num_experts = 1;
    layer.hidden = hidden;
    layer.intermediate = intermediate;
    layer.w13 = reinterpret_cast<const std::uint8_t*>(w13.data());
    layer.w2 = reinterpret_cast<const std::uint8_t*>(w2.data());
    return layer;
  }
};

Result Run(const KernelCase& c, const Expert& expert, const std::vector<Bf16>& x) {
  return RunExpert(*c.kernel, expert.Layer(), x, expert.intermediate, expert.hidden);
}

Expert RandomExpert() {
  std::mt19937 random(17);
  return {RandomBf16(random, 2 * kRows * kLength, 0.2f), RandomBf16(random, kLength * kRows, 0.2f),
          kLength, kRows};
}

// Activations whose gate and up sums are exactly the given values, one row each.
std::vector<Bf16> Activations(const KernelCase& c, const std::vector<Bf16>& gates, float up) {
  Expert expert{gates, std::vector<Bf16>(gates.size()), 1, gates.size()};
  expert.w13.insert(expert.w13.end(), gates.size(), ToBf16(up));
  return Run(c, expert, {ToBf16(1.0f)}).act;
}

void CheckSiluRange(const KernelCase& c) {
  std::vector<Bf16> gates;
  for (const float gate : {-1e38f, -200.0f, -104.0f, -100.0f, -89.0f, -88.0f, -87.0f, -1e-30f, 0.0f,
                           1e-30f, 87.0f, 89.0f, 200.0f, 1e38f}) {
    gates.push_back(ToBf16(gate));
  }
  // Every bf16 from 2^-7 to 64 and its negative: exp's error then shows in some last place.
  for (Bf16 gate = 0x3c00; gate < 0x4280; ++gate) {
    gates.push_back(gate);
    gates.push_back(gate | 0x8000);
  }
  for (const float up : {1.0f, 0.7734375f, -1.3203125f}) {
    const std::vector<Bf16> act = Activations(c, gates, up);
    for (std::size_t i = 0; i < gates.size(); ++i) {
      const double gate = ToDouble(gates[i]);
      EXPECT(IsRounded(act[i], ExactActivation({}, {gate, 0}, {up, 0})), c.name, ": silu(", gate,
             ") * ", up, " is ", ToDouble(act[i]));
    }
  }
  const Bf16 infinite = ToBf16(std::numeric_limits<float>::infinity());
  EXPECT(std::isinf(ToDouble(Activations(c, {infinite}, 1.0f)[0])), c.name, ": infinity is lost");
}

// From 32 on silu(g) is g in float32, and g * up of 16 bits is exact: many products are ties.
void CheckTies(const KernelCase& c) {
  std::vector<Bf16> gates;
  for (Bf16 gate = 0x4200; gate < 0x4280; ++gate) gates.push_back(gate);
  for (const float up : {1.5f, 1.25f, -1.0078125f}) {
    const std::vector<Bf16> act = Activations(c, gates, up);
    for (std::size_t i = 0; i < gates.size(); ++i) {
      const auto product = static_cast<float>(ToDouble(gates[i]) * up);
      EXPECT(act[i] == ToBf16(product), c.name, ": ", product, " became ", ToDouble(act[i]));
    }
  }
}

// Denormals are lost or kept, but never more than kTiny away and never NaN.
void CheckDenormals(const KernelCase& c) {
  std::vector<Bf16> x(2 * kLength, 0x0001);  // the smallest bf16 denormal; the second token zero
  for (std::size_t i = kLength; i < x.size(); ++i) x[i] = 0x8000;
  const Result result = Run(c, RandomExpert(), x);
  for (const Bf16 act : result.act) EXPECT(std::abs(ToDouble(act)) < 0x1p-120, c.name);
  for (const float out : result.out) EXPECT(std::abs(out) < 0x1p-110f, c.name);
}

void CheckOverflow(const KernelCase& c) {
  const Expert expert{std::vector<Bf16>(2 * kRows * kLength, 0x7f00),
                      std::vector<Bf16>(kLength * kRows, 0x3f80), kLength, kRows};
  const Result result = Run(c, expert, std::vector<Bf16>(kLength, 0x7f00));
  for (const Bf16 act : result.act) EXPECT(std::isinf(ToDouble(act)), c.name, ": not infinite");
  for (const float out : result.out) EXPECT(std::isinf(out), c.name, ": not infinite");
}

void CheckNanWeight(const KernelCase& c) {
  Expert poisoned = RandomExpert();
  poisoned.w2[3 * kRows + 10] = 0xffff;  // NaN in the weights of one output
  std::mt19937 random(19);
  const Result result = Run(c, poisoned, RandomBf16(random, kLength, 1.0f));
  for (std::size_t i = 0; i < kLength; ++i) {
    EXPECT(std::isnan(result.out[i]) == (i == 3), c.name, ": output ", i);
  }
}

KernelCase Few(const char* isa) { return CaseOrSkip(isa, WeightFormat::kBf16, Which::kFew); }
KernelCase Amx() { return CaseOrSkip("amx", WeightFormat::kBf16, Which::kMany); }
KernelCase Emulated() { return EmulatedOrSkip(kBf16AmxEmulated, WeightFormat::kBf16); }

}  // namespace

#define FOR_EACH_KERNEL(test, check)                   \
  TEST(Scalar##test) { check(Few("scalar")); }         \
  TEST(Avx2##test) { check(Few("avx2")); }             \
  TEST(Avx512##test) { check(Few("avx512")); }         \
  TEST(Avx512Dot##test) { check(Few("avx512_bf16")); } \
  TEST(Amx##test) { check(Amx()); }                    \
  TEST(EmulatedAmx##test) { check(Emulated()); }

FOR_EACH_KERNEL(SiluIsRightOverTheWholeRange, CheckSiluRange)
FOR_EACH_KERNEL(ActivationsAreRoundedToEven, CheckTies)
FOR_EACH_KERNEL(DenormalsAreHarmless, CheckDenormals)
FOR_EACH_KERNEL(OverflowGoesToInfinity, CheckOverflow)
FOR_EACH_KERNEL(NanInAWeightStaysWithItsOutput, CheckNanWeight)

}  // namespace ktd::testing
