// The kernels under test: every format of every ISA, few tokens and many, and the AMX kernels
// emulated.
#pragma once

#include <string>

#include "kernels/kernel_table.h"

namespace ktd::testing {

enum class Which { kFew, kMany };

struct KernelCase {
  std::string name;
  const ExpertKernel* kernel;
  WeightFormat format;
  int variant = 0;          // see FormatOf
  double weight_error = 0;  // relative; of kernels that round each weight

  KernelCase Variant(int which) const;
  KernelCase RoundsWeights(double error) const;
};

// The calling test is skipped, with what this CPU lacks, if it cannot run the ISA.
KernelCase CaseOrSkip(const char* isa, WeightFormat format, Which which);

// An AMX kernel compiled with tiles in plain C++; needs what the other instructions of it need.
KernelCase EmulatedOrSkip(const ExpertKernel& kernel, WeightFormat format);

}  // namespace ktd::testing
