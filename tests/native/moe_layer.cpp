#include "moe_layer.h"

#include <cmath>
#include <limits>

#include "checker.h"

namespace ktd::testing {

const Kernel& KernelOrSkip(const char* name) {
  for (const Kernel& kernel : KernelTable()) {
    if (std::string_view(kernel.name) != name) continue;
    std::string missing;
    for (const std::string& feature : FeatureNames(kernel.required & ~DetectCpuFeatures())) {
      missing += " " + feature;
    }
    if (!missing.empty()) SKIP("this CPU cannot run the ", name, " kernels, it lacks", missing);
    return kernel;
  }
  throw Failure(Concat("there is no kernel called ", name));
}

FormatCase RandomLayer(std::size_t num_experts, std::size_t hidden, std::size_t intermediate) {
  CaseOptions options;
  options.num_experts = num_experts;
  options.hidden = hidden;
  options.intermediate = intermediate;
  return {WeightFormat::kBf16, options, 3};
}

Call RandomCall(const FormatCase& experts, std::size_t tokens, std::size_t top_k, unsigned seed) {
  std::mt19937 random(seed);
  const LayerWeights& layer = experts.layer();
  const auto count = static_cast<std::int32_t>(layer.num_experts);
  std::uniform_int_distribution<std::int32_t> id(-count / 3 - 1, count - 1);
  std::uniform_real_distribution<float> weight(0.0f, 1.0f);
  Call call{RandomBf16(random, tokens * layer.hidden, 1.0f),
            std::vector<std::int32_t>(tokens * top_k),
            std::vector<float>(tokens * top_k),
            std::vector<float>(tokens * layer.hidden, std::numeric_limits<float>::quiet_NaN()),
            tokens,
            top_k};
  for (std::int32_t& value : call.ids) value = std::max(id(random), -1);
  for (float& value : call.weights) value = weight(random);
  return call;
}

namespace {

// Adds one expert's share. The activation's rounding to bf16 is the largest error: half a unit of 8
// places, and when the float32 sums differ a neighbour. Both are within 2^-8 of it, plus what
// ExactActivation allows, plus what that does to a format that quantises activations.
void AddExpert(const FormatCase& experts, std::size_t expert, const Bf16* x, double weight,
               std::vector<Bounded>& exact) {
  const LayerWeights& layer = experts.layer();
  const std::vector<double> prepared = experts.format().Prepared(x, layer.hidden);
  const double before = layer.weights_before_input ? weight : 1.0;
  const double after = layer.weights_before_input ? 1.0 : weight;
  std::vector<Bf16> act(layer.intermediate);
  double error = 0;
  for (std::size_t i = 0; i < layer.intermediate; ++i) {
    Bounded gate = experts.Gate(expert, i, prepared);
    Bounded up = experts.Up(expert, i, prepared);
    gate = {gate.value * before, gate.error * before + 0x1p-24 * std::abs(gate.value)};
    up = {up.value * before, up.error * before + 0x1p-24 * std::abs(up.value)};
    const Bounded value = ExactActivation(layer.activation, gate, up);
    act[i] = ToBf16(static_cast<float>(value.value));
    error = std::max(error, value.error + 0x1p-8 * std::abs(value.value));
  }
  const std::vector<double> inputs = experts.format().Prepared(act.data(), layer.intermediate);
  error = experts.format().PreparedError(act.data(), layer.intermediate, error);
  for (std::size_t h = 0; h < layer.hidden; ++h) {
    const Bounded down = experts.Down(expert, h, inputs);
    const double* row = experts.down_row(expert, h);
    double magnitude = 0;
    for (std::size_t i = 0; i < layer.intermediate; ++i) magnitude += std::abs(row[i]);
    exact[h].value += after * down.value;
    exact[h].error += std::abs(after) * (down.error + magnitude * error);
  }
}

}  // namespace

void ExpectRight(const FormatCase& experts, const Call& call, const std::string& what) {
  const LayerWeights& layer = experts.layer();
  for (std::size_t token = 0; token < call.tokens; ++token) {
    std::vector<Bounded> exact(layer.hidden, Bounded{0, 0x1p-100});
    for (std::size_t k = 0; k < call.top_k; ++k) {
      const std::int32_t id = call.ids[token * call.top_k + k];
      if (id < 0) continue;
      AddExpert(experts, static_cast<std::size_t>(id), call.x.data() + token * layer.hidden,
                call.weights[token * call.top_k + k] * layer.routed_scale, exact);
    }
    for (std::size_t h = 0; h < layer.hidden; ++h) {
      const double got = call.out[token * layer.hidden + h];
      EXPECT(std::abs(got - exact[h].value) <= exact[h].error * 1.01, what, ": token ", token,
             ", column ", h, " is ", got, ", not ", exact[h].value, " within ", exact[h].error);
    }
  }
}

}  // namespace ktd::testing
