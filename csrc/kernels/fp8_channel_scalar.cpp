#include "e4m3.h"
#include "expert_kernels.h"
#include "scalar.h"

namespace ktd {
namespace {

struct Fp8ChannelNaive {
  static float Weight(const Matrix& m, std::size_t row, std::size_t column) noexcept {
    const float scale = *reinterpret_cast<const float*>(m.scales + row * m.scale_pitch);
    return FromE4m3(m.weights[row * m.pitch + column]) * scale;
  }
  static void Prepare(const Matrix& m, const Bf16* x, float* values) noexcept {
    const Quantiser quantiser = TokenQuantiser(LargestOf(x, m.columns));
    for (std::size_t k = 0; k < m.columns; ++k) {
      values[k] = RoundE4m3(Widen(x[k]) * quantiser.inverse) * quantiser.scale;
    }
  }
};

}  // namespace

const ExpertKernel kFp8ChannelScalar = NaiveKernel<Fp8ChannelNaive>(8);

}  // namespace ktd
