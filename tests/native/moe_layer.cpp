#include "moe_layer.h"

#include <cmath>
#include <limits>

#include "checker.h"

namespace ktd::testing {

Layer RandomLayer(std::size_t num_experts, std::size_t hidden, std::size_t intermediate) {
  std::mt19937 random(3);
  const float scale = 1.0f / std::sqrt(static_cast<float>(hidden));
  return {num_experts, hidden, intermediate,
          RandomBf16(random, num_experts * 2 * intermediate * hidden, scale),
          RandomBf16(random, num_experts * hidden * intermediate, 0.1f)};
}

Call RandomCall(const Layer& layer, std::size_t tokens, std::size_t top_k, unsigned seed) {
  std::mt19937 random(seed);
  const auto experts = static_cast<std::int32_t>(layer.num_experts);
  std::uniform_int_distribution<std::int32_t> id(-experts / 3 - 1, experts - 1);
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

// The activation's rounding to bf16 is the largest error: half a unit of 8 places, and when the
// float32 sums differ a neighbour. Both are within 2^-8 of it, plus what ExactActivation allows.
void ExpectRight(const Layer& layer, const Call& call, const std::string& what) {
  const std::size_t hidden = layer.hidden;
  const std::size_t inner = layer.intermediate;
  for (std::size_t token = 0; token < call.tokens; ++token) {
    std::vector<Bounded> exact(hidden, Bounded{0, 0x1p-100});
    for (std::size_t k = 0; k < call.top_k; ++k) {
      const std::int32_t id = call.ids[token * call.top_k + k];
      if (id < 0) continue;
      const auto expert = static_cast<std::size_t>(id);
      const Bf16* gate = layer.w13.data() + expert * 2 * inner * hidden;
      std::vector<Bounded> act(inner);
      for (std::size_t i = 0; i < inner; ++i) {
        const Bf16* x = call.x.data() + token * hidden;
        act[i] = ExactActivation(ExactDot(gate + i * hidden, x, hidden),
                                 ExactDot(gate + (inner + i) * hidden, x, hidden));
      }
      const double weight = call.weights[token * call.top_k + k];
      for (std::size_t h = 0; h < hidden; ++h) {
        const Bf16* down = layer.w2.data() + (expert * hidden + h) * inner;
        for (std::size_t i = 0; i < inner; ++i) {
          const double w = weight * ToDouble(down[i]);
          exact[h].value += w * act[i].value;
          exact[h].error += std::abs(w) * (act[i].error + 0x1p-8 * std::abs(act[i].value));
        }
      }
    }
    for (std::size_t h = 0; h < hidden; ++h) {
      const double got = call.out[token * hidden + h];
      EXPECT(std::abs(got - exact[h].value) <= exact[h].error * 1.01, what, ": token ", token,
             ", column ", h, " is ", got, ", not ", exact[h].value, " within ", exact[h].error);
    }
  }
}

}  // namespace ktd::testing
