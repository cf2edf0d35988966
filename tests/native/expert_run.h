// One expert over some tokens through a kernel, with weight 1 and ranges that may be split.
#pragma once

#include <vector>

#include "format_case.h"
#include "kernel_case.h"

namespace ktd::testing {

struct Result {
  std::vector<Bf16> act;   // [count, intermediate]
  std::vector<float> out;  // [count, hidden]
};

// Both products in two ranges each that meet at the given rows, multiples of the kernel's unit.
Result RunExpert(const ExpertKernel& kernel, const LayerWeights& layer, const std::vector<Bf16>& x,
                 std::size_t row_split, std::size_t column_split);

// `act` as the kernel's `down` takes it; in `storage` if that is another form.
const std::uint8_t* ForDown(const ExpertKernel& kernel, const Matrix& down, const std::uint8_t* act,
                            std::size_t count, std::vector<std::uint8_t>& storage);

}  // namespace ktd::testing
