#include "expert_kernels.h"
#include "scalar.h"

namespace ktd {
namespace {

struct Bf16Naive {
  static float Weight(const Matrix& m, std::size_t row, std::size_t column) noexcept {
    return Widen(reinterpret_cast<const Bf16*>(m.weights + row * m.pitch)[column]);
  }
  static void Prepare(const Matrix& m, const Bf16* x, float* values) noexcept {
    for (std::size_t k = 0; k < m.columns; ++k) values[k] = Widen(x[k]);
  }
};

}  // namespace

const ExpertKernel kBf16Scalar = NaiveKernel<Bf16Naive>(8);

}  // namespace ktd
