// From how many tokens of an expert on its many-token kernel pays, on this host.
#pragma once

#include <cstddef>

#include "expert_layout.h"
#include "kernels/kernel_table.h"

namespace ktd {

// The smallest number of tokens from which `kernels.many` computes some rows of the layer's first
// expert at least as fast as `kernels.few`; the table's own figure where the two are one kernel.
// Takes a few milliseconds of the calling thread. The weights are in cache while it measures: where
// memory is the limit either kernel waits for it, and the choice does not matter.
std::size_t MeasureCrossover(const FormatKernels& kernels, const LayerWeights& layer);

}  // namespace ktd
