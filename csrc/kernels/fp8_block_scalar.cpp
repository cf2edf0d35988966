#include "e4m3.h"
#include "expert_kernels.h"
#include "scalar.h"

namespace ktd {
namespace {

struct Fp8BlockNaive {
  static float Weight(const Matrix& m, std::size_t row, std::size_t column) noexcept {
    const auto* scales = reinterpret_cast<const float*>(m.scales + row / kFp8Block * m.scale_pitch);
    return FromE4m3(m.weights[row * m.pitch + column]) * scales[column / kFp8Block];
  }
  static void Prepare(const Matrix& m, const Bf16* x, float* values) noexcept {
    for (std::size_t begin = 0; begin < m.columns; begin += kFp8Block) {
      const std::size_t left = m.columns - begin;
      const std::size_t n = left < kFp8Block ? left : kFp8Block;
      const Quantiser quantiser = GroupQuantiser(LargestOf(x + begin, n));
      for (std::size_t k = begin; k < begin + n; ++k) {
        values[k] = RoundE4m3(Widen(x[k]) * quantiser.inverse) * quantiser.scale;
      }
    }
  }
};

}  // namespace

const ExpertKernel kFp8BlockScalar = NaiveKernel<Fp8BlockNaive>(8);

}  // namespace ktd
