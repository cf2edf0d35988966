// What kernels of every format do with values that are not ordinary, and what must not change a
// result.
#include <cmath>

#include "expert_run.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

FormatCase MakeExpert(const KernelCase& c) {
  CaseOptions options;
  options.variant = c.variant;
  options.hidden = 256;  // every format's unit divides it
  options.intermediate = 128;
  return {c.format, options, 11};
}

}  // namespace

void CheckBatchInvariance(const KernelCase& c) {
  const FormatCase expert = MakeExpert(c);
  const LayerWeights& layer = expert.layer();
  std::mt19937 random(11);
  const std::vector<Bf16> x = RandomBf16(random, 70 * layer.hidden, 1.0f);
  const Result whole = RunExpert(*c.kernel, layer, x, layer.intermediate, layer.hidden);
  for (const std::size_t count : {1, 2, 3, 5, 9, 17, 69}) {
    const std::vector<Bf16> some(x.begin(),
                                 x.begin() + static_cast<std::ptrdiff_t>(count * layer.hidden));
    const Result part = RunExpert(*c.kernel, layer, some, 64, 128);
    for (std::size_t i = 0; i < part.act.size(); ++i) {
      EXPECT(part.act[i] == whole.act[i], c.name, ": activation ", i, " of ", count, " tokens");
    }
    for (std::size_t i = 0; i < part.out.size(); ++i) {
      EXPECT(part.out[i] == whole.out[i], c.name, ": output ", i, " of ", count, " tokens");
    }
  }
}

void CheckLongBatch(const KernelCase& c) {
  CaseOptions options;
  options.variant = c.variant;
  options.hidden = 32768;  // so that 16 tokens are 512 KiB or 1 MiB of tiles
  options.intermediate = 128;
  const FormatCase expert(c.format, options, 17);
  const LayerWeights& layer = expert.layer();
  constexpr std::size_t kTokens = 200;
  constexpr std::size_t kFirst = 120;  // of those computed once more, alone
  constexpr std::size_t kSome = 40;
  std::mt19937 random(17);
  const std::vector<Bf16> x = RandomBf16(random, kTokens * layer.hidden, 1.0f);
  const auto from = x.begin() + static_cast<std::ptrdiff_t>(kFirst * layer.hidden);
  const std::vector<Bf16> some(from, from + static_cast<std::ptrdiff_t>(kSome * layer.hidden));
  const Result whole = RunExpert(*c.kernel, layer, x, 64, 16384);
  const Result part = RunExpert(*c.kernel, layer, some, 64, 16384);
  for (std::size_t i = 0; i < part.act.size(); ++i) {
    EXPECT(part.act[i] == whole.act[kFirst * layer.intermediate + i], c.name, ": activation ", i);
  }
  for (std::size_t i = 0; i < part.out.size(); ++i) {
    EXPECT(part.out[i] == whole.out[kFirst * layer.hidden + i], c.name, ": output ", i);
  }
}

void CheckNan(const KernelCase& c) {
  const FormatCase expert = MakeExpert(c);
  const LayerWeights& layer = expert.layer();
  std::mt19937 random(13);
  const std::size_t places[] = {0, 40, layer.hidden - 1};
  constexpr Bf16 kNans[] = {0x7fc1, 0x7fff, 0xff81};
  for (int i = 0; i < 3; ++i) {
    std::vector<Bf16> x = RandomBf16(random, 3 * layer.hidden, 1.0f);
    x[layer.hidden + places[i]] = kNans[i];  // in the second token
    const Result result = RunExpert(*c.kernel, layer, x, layer.intermediate, layer.hidden);
    for (std::size_t k = 0; k < result.act.size(); ++k) {
      EXPECT(std::isnan(ToDouble(result.act[k])) == (k / layer.intermediate == 1), c.name,
             ": activation ", k);
    }
    for (std::size_t k = 0; k < result.out.size(); ++k) {
      EXPECT(std::isnan(result.out[k]) == (k / layer.hidden == 1), c.name, ": output ", k);
    }
  }
}

}  // namespace ktd::testing
