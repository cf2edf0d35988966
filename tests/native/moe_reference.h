// The two products in double precision, with the error that a float32 kernel may make.
//
// With u = 2^-24 (float32's unit roundoff), a sum of n products of bf16 values, each exact in
// float32, in whatever order and with or without fused operations, is off by at most
//     gamma(n) * sum |a_i b_i|,   gamma(n) = n u / (1 - n u)
// (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). vdpbf16ps also takes
// denormal inputs as zero and flushes denormal sums: at most 2^-126 for each operation, times the
// other factor where an input was lost. The float32 errors of SiLU add kSiluError relative.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/kernel_table.h"
#include "kernels/moe_job.h"

namespace ktd::testing {

// The kernel called `name`, or the calling test is skipped with what this CPU lacks.
const Kernel& KernelOrSkip(const char* name);

// A value and how far from it a correct kernel may be.
struct Bounded {
  double value;
  double error;
};

double ToDouble(Bf16 value);
Bf16 ToBf16(float value);  // nearest even

// a . b over n values.
Bounded ExactDot(const Bf16* a, const Bf16* b, std::size_t n);

// silu(gate) * up before rounding; the bound holds for what a kernel rounds to bf16.
Bounded ExactActivation(const Bounded& gate, const Bounded& up);

// Whether `act` is what rounding some value within the bound to nearest bf16 gives.
bool IsRounded(Bf16 act, const Bounded& exact);

// n values of a normal distribution, rounded to bf16.
std::vector<Bf16> RandomBf16(std::mt19937& random, std::size_t n, float scale);

// A buffer whose data() is `shift` elements off a 64-byte boundary, for misaligned reads.
class Shifted {
 public:
  Shifted(const std::vector<Bf16>& values, std::size_t shift);
  const Bf16* data() const { return start_; }

 private:
  std::vector<Bf16> storage_;
  Bf16* start_;
};

// Lengths around a vector of N values: 1, 3, N/2, N, N+1, ... 8N+2.
std::vector<std::size_t> LengthsAround(std::size_t vector);

}  // namespace ktd::testing
