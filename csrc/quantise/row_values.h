// One row of a checkpoint's weights as float32.
#pragma once

#include <cstddef>

#include "weight_format.h"

namespace ktd {

// `to` has room for from.columns values. kBf16, kFp8Block and kFp8Channel; the scales of FP8 are
// float32.
void RowValues(const Matrix& from, std::size_t row, float* to) noexcept;

}  // namespace ktd
