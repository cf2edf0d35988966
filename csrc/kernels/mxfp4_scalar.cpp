#include "expert_kernels.h"
#include "nibble.h"
#include "scalar.h"

namespace ktd {
namespace {

struct Mxfp4Naive {
  static float Weight(const Matrix& m, std::size_t row, std::size_t column) noexcept {
    const unsigned nibble = NibbleAt(m.weights + row * m.pitch, column);
    const std::uint8_t* scales = m.scales + row * m.scale_pitch;
    return E2m1Values::kOf[nibble] * ScaleAt(m.scale_type, scales, column / m.group);
  }
  static void Prepare(const Matrix& m, const Bf16* x, float* values) noexcept {
    for (std::size_t k = 0; k < m.columns; ++k) values[k] = Widen(x[k]);
  }
};

}  // namespace

const ExpertKernel kMxfp4Scalar = NaiveKernel<Mxfp4Naive>(8);

}  // namespace ktd
