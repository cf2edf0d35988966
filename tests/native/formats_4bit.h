// The 4-bit formats for the tests, written without regard to speed and apart from the kernels.
#pragma once

#include "format_case.h"

namespace ktd::testing {

// E2M1 as OCP's Microscaling Formats define it: sign, two bits of exponent, one of mantissa.
double E2m1ToDouble(unsigned code);
double E8m0ToDouble(std::uint8_t code);

// Groups and scales by variant: 32 with bf16, 64 with float16, 128 with float32. Null for other
// formats.
const TestFormat* FourBitFormat(WeightFormat format, int variant);

}  // namespace ktd::testing
