// The two products in double precision, with the error that a float32 kernel may make.
//
// With u = 2^-24 (float32's unit roundoff), a sum of n products, each exact in float32, in whatever
// order and with or without fused operations, is off by at most
//     gamma(n) * sum |a_i b_i|,   gamma(n) = n u / (1 - n u)
// (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); a scale on a factor, a
// product or a group of products costs a few more u, kScaleRoundings in all. vdpbf16ps and AMX also
// take denormal inputs as zero and flush denormal sums: at most 2^-126 for each operation, times
// the other factor where an input was lost. The float32 errors of the activation add kSiluError
// relative.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/kernel_table.h"
#include "kernels/moe_job.h"

namespace ktd::testing {

// A value and how far from it a correct kernel may be.
struct Bounded {
  double value;
  double error;
};

double ToDouble(Bf16 value);
Bf16 ToBf16(float value);  // nearest even

// a . b over n values, each a_i off by at most `a_error`, relative.
Bounded ExactDot(const double* a, const double* b, std::size_t n, double a_error = 0);

// The activation before rounding; the bound holds for what a kernel rounds to bf16.
Bounded ExactActivation(const Activation& activation, const Bounded& gate, const Bounded& up);

// Whether `act` is what rounding some value within the bound to nearest bf16 gives.
bool IsRounded(Bf16 act, const Bounded& exact);

// n values of a normal distribution, rounded to bf16.
std::vector<Bf16> RandomBf16(std::mt19937& random, std::size_t n, float scale);

// Bytes whose data() is `shift` bytes off a 64-byte boundary, for misaligned reads.
class Shifted {
 public:
  Shifted(const void* bytes, std::size_t size, std::size_t shift);
  explicit Shifted(const std::vector<Bf16>& values, std::size_t shift)
      : Shifted(values.data(), values.size() * sizeof(Bf16), shift * sizeof(Bf16)) {}
  const std::uint8_t* data() const { return start_; }
  const Bf16* bf16() const { return reinterpret_cast<const Bf16*>(start_); }

 private:
  std::vector<std::uint8_t> storage_;
  std::uint8_t* start_;
};

}  // namespace ktd::testing
