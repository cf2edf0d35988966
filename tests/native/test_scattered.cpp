// Projections that lie by themselves: the same bits as from one tensor, and what is refused.
#include <cstring>
#include <deque>

#include "checker.h"
#include "kernels/expert_kernels.h"
#include "moe_layer.h"
#include "topology.h"

namespace ktd::testing {
namespace {

// The layer's bf16 experts once more, each projection in memory of its own that is aligned to its
// elements and no more, its rows `gap` elements apart.
class ScatteredLayer {
 public:
  ScatteredLayer(const LayerWeights& layer, std::size_t gap) : weights(layer), gap_(gap) {
    weights.w13 = weights.w2 = nullptr;
    for (std::size_t e = 0; e < layer.num_experts; ++e) {
      const ExpertMatrices m = MatricesOf(layer, e);
      weights.w13_scattered.weights.push_back(Copy(m.gate));
      weights.w13_scattered.weights.push_back(Copy(m.up));
      weights.w2_scattered.weights.push_back(Copy(m.down));
    }
  }

  LayerWeights weights;

 private:
  Lines Copy(const Matrix& m) {
    const std::size_t pitch = m.columns + gap_;
    memory_.emplace_back(m.rows * pitch + 1);
    Bf16* rows = memory_.back().data() + 1;
    for (std::size_t r = 0; r < m.rows; ++r) {
      std::memcpy(rows + r * pitch, AddressOf(m, r), m.columns * sizeof(Bf16));
    }
    return {reinterpret_cast<const std::uint8_t*>(rows), pitch * sizeof(Bf16)};
  }

  std::size_t gap_;
  std::deque<std::vector<Bf16>> memory_;
};

void CheckSameBits(const Kernel& kernel) {
  PoolOptions options;
  options.threads = 2;
  options.cpus = AllowedCpus();
  options.measure_crossover = false;
  ExpertPool pool(kernel, options);
  const FormatCase together = RandomLayer(4, 83, 45);
  for (const bool interleaved : {false, true}) {
    LayerWeights layer = together.layer();
    layer.interleaved = interleaved;
    for (const std::size_t gap : {0, 5}) {
      const ScatteredLayer apart(layer, gap);
      for (const std::size_t tokens : {1, 2, 33}) {
        Call first = RandomCall(together, tokens, 2, 9);
        Call second = first;
        const std::uint64_t bytes = pool.Forward(first.On(pool.AddLayer(layer)));
        EXPECT(pool.Forward(second.On(pool.AddLayer(apart.weights))) == bytes);
        EXPECT(first.out == second.out, kernel.name, ": gap ", gap, ", tokens ", tokens);
      }
    }
  }
}

std::string Refusal(const LayerWeights& layer) {
  return MessageOf<CheckError>([&] { CheckLayer(layer); });
}

}  // namespace

TEST(ScatteredExpertsGiveTheBitsOfThoseInATensor) {
  for (const Kernel& kernel : KernelTable()) {
    if ((kernel.required & ~DetectCpuFeatures()) == 0) CheckSameBits(kernel);
  }
}

TEST(EmulatedAmxReadsScatteredExperts) {
  const Kernel& best = KernelOrSkip("avx512_bf16");
  CheckSameBits({"emulated amx", best.required, {{&kBf16Avx512Bf16, &kBf16AmxEmulated, 3}}});
}

TEST(ScatteredExpertsThatAreNotAllThereAreRefused) {
  const FormatCase together = RandomLayer(2, 16, 8);
  const ScatteredLayer apart(together.layer(), 0);
  CheckLayer(apart.weights);
  LayerWeights both = apart.weights;
  both.w2 = together.layer().w2;
  EXPECT(Contains(Refusal(both), "in one tensor or scattered, not both"), Refusal(both));
  LayerWeights fewer = apart.weights;
  fewer.w13_scattered.weights.pop_back();
  EXPECT(Contains(Refusal(fewer), "of 4 projections, not of 3"), Refusal(fewer));
  LayerWeights nowhere = apart.weights;
  nowhere.w2_scattered.weights[1].start = nullptr;
  EXPECT(Contains(Refusal(nowhere), "at address 0"), Refusal(nowhere));
  LayerWeights none = apart.weights;
  none.w2_scattered.weights.clear();
  EXPECT(Contains(Refusal(none), "at address 0"), Refusal(none));
}

}  // namespace ktd::testing
