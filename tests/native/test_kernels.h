// The checks that every kernel passes, and the tests that run them.
#pragma once

#include "checker.h"
#include "kernel_case.h"

namespace ktd::testing {

void CheckLengths(const KernelCase& c);
void CheckShapes(const KernelCase& c);
void CheckVariants(const KernelCase& c);

// Values that are not ordinary, and what must not change a result (test_kernels_values.cpp).
void CheckBatchInvariance(const KernelCase& c);
void CheckNan(const KernelCase& c);
// For kernels that take tokens a slab at a time: more of them than a worker's scratch keeps.
void CheckLongBatch(const KernelCase& c);

}  // namespace ktd::testing

// The tests of one kernel; `the_case` is a KernelCase, or skips.
#define KERNEL_TESTS(label, the_case)                                              \
  TEST(label##IsRightForEveryLength) { CheckLengths(the_case); }                   \
  TEST(label##IsRightForEveryShape) { CheckShapes(the_case); }                     \
  TEST(label##IsRightForEveryVariant) { CheckVariants(the_case); }                 \
  TEST(label##DependsNeitherOnBatchNorOnRange) { CheckBatchInvariance(the_case); } \
  TEST(label##KeepsNanWithItsTokenAndRow) { CheckNan(the_case); }

// Those of another group size and type of scales, which a kernel meets in every shape alike.
#define VARIANT_TESTS(label, the_case)                           \
  TEST(label##IsRightForEveryLength) { CheckLengths(the_case); } \
  TEST(label##DependsNeitherOnBatchNorOnRange) { CheckBatchInvariance(the_case); }
