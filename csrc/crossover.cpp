#include "crossover.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "aligned.h"

namespace ktd {
namespace {

constexpr std::size_t kCounts[] = {2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32};
constexpr std::size_t kMostTokens = 32;
constexpr std::size_t kRows = 64;
constexpr int kTries = 3;

double SecondsOf(const ExpertKernel& kernel, GateUpJob job) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kTries; ++i) {
    const auto start = std::chrono::steady_clock::now();
    kernel.gate_up(job);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return best;
}

}  // namespace

std::size_t MeasureCrossover(const FormatKernels& kernels, const LayerWeights& layer) {
  if (kernels.few == kernels.many) return kernels.many_from;
  const ExpertMatrices expert = MatricesOf(layer, 0);
  const std::vector<Bf16> x(kMostTokens * layer.hidden, 0x3f80);
  std::vector<std::int32_t> tokens(kMostTokens);
  for (std::size_t i = 0; i < kMostTokens; ++i) tokens[i] = static_cast<std::int32_t>(i);
  AlignedArray<std::uint8_t> act;
  AlignedArray<std::uint8_t> scratch;
  for (const ExpertKernel* kernel : {kernels.few, kernels.many}) {
    act.Reserve(kernel->act_bytes(layer.intermediate, kMostTokens));
    scratch.Reserve(kernel->scratch_bytes(layer.hidden, layer.intermediate));
  }
  GateUpJob job{};
  job.gate = expert.gate;
  job.up = expert.up;
  job.activation = layer.activation;
  job.row_end = std::min(kRows, layer.intermediate);
  job.x = x.data();
  job.tokens = tokens.data();
  job.act = act.data();
  job.scratch = scratch.data();
  for (const std::size_t count : kCounts) {
    job.count = count;
    if (SecondsOf(*kernels.many, job) <= SecondsOf(*kernels.few, job)) return count;
  }
  return kMostTokens;
}

}  // namespace ktd
