// The kernels that this build has, and the choice among them.
#pragma once

#include <string_view>
#include <vector>

#include "../cpu_features.h"
#include "moe_job.h"

namespace ktd {

struct Kernel {
  const char* name;
  CpuFeatures required;
  FormatKernels formats[kWeightFormats];  // by WeightFormat

  const FormatKernels& For(WeightFormat format) const noexcept {
    return formats[static_cast<std::size_t>(format)];
  }
};

// All kernels, best first. The rows live as long as the program.
const std::vector<Kernel>& KernelTable();

// The kernel called `name`, or with "" the first that `have` can run. Throws CheckError for an
// unknown name, and for a kernel that `have` cannot run: it names what is missing and what is
// there.
const Kernel& SelectKernel(std::string_view name, CpuFeatures have);

}  // namespace ktd
