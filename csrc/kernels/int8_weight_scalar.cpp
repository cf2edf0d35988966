#include "expert_kernels.h"
#include "scalar.h"

namespace ktd {
namespace {

struct Int8WeightNaive {
  static float Weight(const Matrix& m, std::size_t row, std::size_t column) noexcept {
    const float scale = *reinterpret_cast<const float*>(m.scales + row * m.scale_pitch);
    return static_cast<float>(static_cast<std::int8_t>(m.weights[row * m.pitch + column])) * scale;
  }
  static void Prepare(const Matrix& m, const Bf16* x, float* values) noexcept {
    for (std::size_t k = 0; k < m.columns; ++k) values[k] = Widen(x[k]);
  }
};

}  // namespace

const ExpertKernel kInt8WeightScalar = NaiveKernel<Int8WeightNaive>(8);

}  // namespace ktd
