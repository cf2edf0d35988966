#include "row_values.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/bf16.h"

namespace ktd {
namespace {

struct E4m3Values {
  float at[256];
  E4m3Values() {
    for (int code = 0; code < 256; ++code) {
      const int exponent = code >> 3 & 15;
      const float mantissa = static_cast<float>(code & 7);
      float value =
          exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8.0f + mantissa, exponent - 10);
      // All ones is NaN; the format has no infinity.
      if ((code & 0x7f) == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
      at[code] = code & 0x80 ? -value : value;
    }
  }
};

float ScaleOf(const Matrix& m, std::size_t line, std::size_t column) noexcept {
  float scale;
  std::memcpy(&scale, m.scales + line * m.scale_pitch + column * sizeof scale, sizeof scale);
  return scale;
}

}  // namespace

void RowValues(const Matrix& from, std::size_t row, float* to) noexcept {
  static const E4m3Values e4m3;
  const std::uint8_t* weights = from.weights + row * from.pitch;
  if (from.format == WeightFormat::kBf16) {
    const Bf16* narrow = reinterpret_cast<const Bf16*>(weights);
    for (std::size_t k = 0; k < from.columns; ++k) to[k] = Widen(narrow[k]);
    return;
  }
  const bool blocks = from.format == WeightFormat::kFp8Block;
  const std::size_t step = blocks ? kFp8Block : from.columns;
  for (std::size_t first = 0; first < from.columns; first += step) {
    const float scale =
        blocks ? ScaleOf(from, row / kFp8Block, first / kFp8Block) : ScaleOf(from, row, 0);
    const std::size_t end = first + step < from.columns ? first + step : from.columns;
    for (std::size_t k = first; k < end; ++k) to[k] = e4m3.at[weights[k]] * scale;
  }
}

}  // namespace ktd
