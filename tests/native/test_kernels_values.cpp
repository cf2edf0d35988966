// What kernels do with values that are not ordinary, and what must not change a result.
#include <cmath>
#include <limits>

#include "checker.h"
#include "moe_reference.h"

namespace ktd::testing {
namespace {

constexpr std::size_t kLength = 75;
constexpr std::size_t kRows = 11;

struct Expert {
  std::vector<Bf16> gate;
  std::vector<Bf16> up;
  std::vector<Bf16> down;  // [kLength, kRows]
};

Expert MakeExpert(std::mt19937& random) {
  return {RandomBf16(random, kRows * kLength, 0.2f), RandomBf16(random, kRows * kLength, 0.2f),
          RandomBf16(random, kLength * kRows, 0.2f)};
}

std::vector<std::int32_t> Ascending(std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<std::int32_t>(i);
  return tokens;
}

// One expert over all tokens of x, with weight 1: the activations and the outputs.
struct Result {
  std::vector<Bf16> act;   // [count, kRows]
  std::vector<float> out;  // [count, kLength]
};

Result RunExpert(const Kernel& kernel, const Expert& expert, const std::vector<Bf16>& x,
                 std::size_t row_split, std::size_t column_split) {
  const std::size_t count = x.size() / kLength;
  const std::vector<std::int32_t> tokens = Ascending(count);
  const std::vector<float> weights(count, 1.0f);
  Result result{std::vector<Bf16>(count * kRows), std::vector<float>(count * kLength)};
  GateUpJob gate_up{expert.gate.data(),
                    expert.up.data(),
                    kLength,
                    0,
                    row_split,
                    x.data(),
                    tokens.data(),
                    count,
                    result.act.data(),
                    kRows};
  kernel.gate_up(gate_up);
  gate_up.row_begin = row_split;
  gate_up.row_end = kRows;
  kernel.gate_up(gate_up);
  DownJob down{expert.down.data(),
               kRows,
               0,
               column_split,
               result.act.data(),
               kRows,
               tokens.data(),
               weights.data(),
               count,
               result.out.data(),
               kLength};
  kernel.down(down);
  down.row_begin = column_split;
  down.row_end = kLength;
  kernel.down(down);
  return result;
}

void CheckBatchInvariance(const char* name) {
  const Kernel& kernel = KernelOrSkip(name);
  std::mt19937 random(11);
  const Expert expert = MakeExpert(random);
  const std::vector<Bf16> x = RandomBf16(random, 70 * kLength, 1.0f);
  const Result whole = RunExpert(kernel, expert, x, kRows, kLength);
  for (const std::size_t count : {1, 2, 3, 5, 9, 69}) {
    const std::vector<Bf16> some(x.begin(),
                                 x.begin() + static_cast<std::ptrdiff_t>(count * kLength));
    const Result part = RunExpert(kernel, expert, some, 5, 18);
    for (std::size_t i = 0; i < part.act.size(); ++i) {
      EXPECT(part.act[i] == whole.act[i], name, ": activation ", i, " of ", count, " tokens");
    }
    for (std::size_t i = 0; i < part.out.size(); ++i) {
      EXPECT(part.out[i] == whole.out[i], name, ": output ", i, " of ", count, " tokens");
    }
  }
}

void CheckNanAndInfinity(const char* name) {
  const Kernel& kernel = KernelOrSkip(name);
  std::mt19937 random(13);
  const Expert expert = MakeExpert(random);
  constexpr std::size_t kPlaces[] = {0, 40, kLength - 1};
  constexpr Bf16 kNans[] = {0x7fc1, 0x7fff, 0xff81};
  for (int i = 0; i < 3; ++i) {
    std::vector<Bf16> x = RandomBf16(random, 3 * kLength, 1.0f);
    x[kLength + kPlaces[i]] = kNans[i];  // in the second token
    const Result result = RunExpert(kernel, expert, x, kRows, kLength);
    for (std::size_t k = 0; k < 3 * kRows; ++k) {
      EXPECT(std::isnan(ToDouble(result.act[k])) == (k / kRows == 1), name, ": activation ", k);
    }
    for (std::size_t k = 0; k < 3 * kLength; ++k) {
      EXPECT(std::isnan(result.out[k]) == (k / kLength == 1), name, ": output ", k);
    }
  }
  Expert poisoned = expert;
  poisoned.down[3 * kRows + 10] = 0xffff;  // NaN in the weights of one output
  const Result result =
      RunExpert(kernel, poisoned, RandomBf16(random, kLength, 1.0f), kRows, kLength);
  for (std::size_t i = 0; i < kLength; ++i) {
    EXPECT(std::isnan(result.out[i]) == (i == 3), name, ": output ", i);
  }
}

// Activations whose gate and up sums are exactly the given values, one row each.
std::vector<Bf16> Activations(const Kernel& kernel, const std::vector<Bf16>& gates, float up) {
  const std::size_t rows = gates.size();
  const std::vector<Bf16> ups(rows, ToBf16(up));
  const Bf16 one = ToBf16(1.0f);
  const std::int32_t token = 0;
  std::vector<Bf16> act(rows);
  kernel.gate_up({gates.data(), ups.data(), 1, 0, rows, &one, &token, 1, act.data(), rows});
  return act;
}

void CheckSiluRange(const char* name) {
  const Kernel& kernel = KernelOrSkip(name);
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
    const std::vector<Bf16> act = Activations(kernel, gates, up);
    for (std::size_t i = 0; i < gates.size(); ++i) {
      const double gate = ToDouble(gates[i]);
      EXPECT(IsRounded(act[i], ExactActivation({gate, 0}, {up, 0})), name, ": silu(", gate, ") * ",
             up, " is ", ToDouble(act[i]));
    }
  }
  const Bf16 infinite = ToBf16(std::numeric_limits<float>::infinity());
  EXPECT(std::isinf(ToDouble(Activations(kernel, {infinite}, 1.0f)[0])), name,
         ": infinity is lost");
}

// From 32 on silu(g) is g in float32, and g * up of 16 bits is exact: many products are ties.
void CheckTies(const char* name) {
  const Kernel& kernel = KernelOrSkip(name);
  std::vector<Bf16> gates;
  for (Bf16 gate = 0x4200; gate < 0x4280; ++gate) gates.push_back(gate);
  for (const float up : {1.5f, 1.25f, -1.0078125f}) {
    const std::vector<Bf16> act = Activations(kernel, gates, up);
    for (std::size_t i = 0; i < gates.size(); ++i) {
      const auto product = static_cast<float>(ToDouble(gates[i]) * up);
      EXPECT(act[i] == ToBf16(product), name, ": ", product, " became ", ToDouble(act[i]));
    }
  }
}

// Denormals are lost or kept, but never more than kTiny away and never NaN.
void CheckDenormals(const char* name) {
  const Kernel& kernel = KernelOrSkip(name);
  std::mt19937 random(17);
  const Expert expert = MakeExpert(random);
  std::vector<Bf16> x(2 * kLength, 0x0001);  // the smallest bf16 denormal; the second token zero
  for (std::size_t i = kLength; i < x.size(); ++i) x[i] = 0x8000;
  const Result result = RunExpert(kernel, expert, x, kRows, kLength);
  for (const Bf16 act : result.act) EXPECT(std::abs(ToDouble(act)) < 0x1p-120, name);
  for (const float out : result.out) EXPECT(std::abs(out) < 0x1p-110f, name);
}

void CheckOverflow(const char* name) {
  const Kernel& kernel = KernelOrSkip(name);
  Expert expert{std::vector<Bf16>(kRows * kLength, 0x7f00),
                std::vector<Bf16>(kRows * kLength, 0x7f00),
                std::vector<Bf16>(kLength * kRows, 0x3f80)};
  const std::vector<Bf16> x(kLength, 0x7f00);
  const Result result = RunExpert(kernel, expert, x, kRows, kLength);
  for (const Bf16 act : result.act) EXPECT(std::isinf(ToDouble(act)), name, ": not infinite");
  for (const float out : result.out) EXPECT(std::isinf(out), name, ": not infinite");
}

}  // namespace

#define FOR_EACH_KERNEL(test, check)      \
  TEST(Scalar##test) { check("scalar"); } \
  TEST(Avx2##test) { check("avx2"); }     \
  TEST(Avx512##test) { check("avx512"); } \
  TEST(Avx512Bf16##test) { check("avx512_bf16"); }

FOR_EACH_KERNEL(ResultDependsNeitherOnBatchNorOnRange, CheckBatchInvariance)
FOR_EACH_KERNEL(NanStaysWithItsTokenAndRow, CheckNanAndInfinity)
FOR_EACH_KERNEL(SiluIsRightOverTheWholeRange, CheckSiluRange)
FOR_EACH_KERNEL(ActivationsAreRoundedToEven, CheckTies)
FOR_EACH_KERNEL(DenormalsAreHarmless, CheckDenormals)
FOR_EACH_KERNEL(OverflowGoesToInfinity, CheckOverflow)

}  // namespace ktd::testing
