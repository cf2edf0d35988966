#include "expert_kernels.h"
#include "nibble.h"
#include "scalar.h"

namespace ktd {
namespace {

struct AwqNaive {
  static float Weight(const Matrix& m, std::size_t row, std::size_t column) noexcept {
    const std::size_t group = column / m.group;
    const auto place = static_cast<std::size_t>(kAwqNibbles[row % 8]);
    const unsigned nibble = NibbleAt(m.weights + column * m.pitch, row / 8 * 8 + place);
    const std::uint8_t* scales = m.scales + group * m.scale_pitch;
    return (static_cast<float>(nibble) - ZeroAt(m, group, row)) *
           ScaleAt(m.scale_type, scales, row);
  }
  static void Prepare(const Matrix& m, const Bf16* x, float* values) noexcept {
    for (std::size_t k = 0; k < m.columns; ++k) values[k] = Widen(x[k]);
  }
};

}  // namespace

const ExpertKernel kAwqScalar = NaiveKernel<AwqNaive>(32);

}  // namespace ktd
