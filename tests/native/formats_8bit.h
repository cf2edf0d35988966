// FP8 and INT8 for the tests: what their bytes mean and how they quantise activations, written
// without regard to speed and apart from the kernels.
#pragma once

#include "format_case.h"

namespace ktd::testing {

double E4m3ToDouble(std::uint8_t code);
// The nearest code, ties to even, saturating; NaN becomes 0x7f.
std::uint8_t ToE4m3(double value);

// Null for other formats.
const TestFormat* EightBitFormat(WeightFormat format);

}  // namespace ktd::testing
