#include "e4m3.h"
#include "expert_kernels.h"
#include "scalar.h"

namespace ktd {
namespace {

struct Int8Naive {
  static float Weight(const Matrix& m, std::size_t row, std::size_t column) noexcept {
    const float scale = *reinterpret_cast<const float*>(m.scales + row * m.scale_pitch);
    return static_cast<float>(static_cast<std::int8_t>(m.weights[row * m.pitch + column])) * scale;
  }
  static void Prepare(const Matrix& m, const Bf16* x, float* values) noexcept {
    float largest = 0.0f;
    for (std::size_t k = 0; k < m.columns; ++k) {
      const float magnitude = std::fabs(Widen(x[k]));
      if (!(magnitude <= largest)) largest = magnitude;
      if (largest != largest) break;
    }
    const Quantiser quantiser = Int8Quantiser(largest);
    for (std::size_t k = 0; k < m.columns; ++k) {
      values[k] = std::round(Widen(x[k]) * quantiser.inverse) * quantiser.scale;
    }
  }
};

}  // namespace

const ExpertKernel kInt8Scalar = NaiveKernel<Int8Naive>(8);

}  // namespace ktd
