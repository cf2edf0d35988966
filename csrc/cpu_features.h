// What this CPU and its operating system let a kernel execute.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ktd {

// A set of features, one bit each.
using CpuFeatures = std::uint32_t;

enum CpuFeature : CpuFeatures {
  kAvx2 = 1u << 0,
  kFma = 1u << 1,
  kAvx512F = 1u << 2,
  kAvx512Bw = 1u << 3,
  kAvx512Vl = 1u << 4,
  kAvx512Dq = 1u << 5,
  kAvx512Bf16 = 1u << 6,
  kAvx512Vnni = 1u << 7,
  kAvx512Vbmi = 1u << 8,
  kAvxVnni = 1u << 9,
  kAmxTile = 1u << 10,
  kAmxBf16 = 1u << 11,
  kAmxInt8 = 1u << 12,
};

// The features that CPUID reports and whose registers the operating system saves (XGETBV): a
// hypervisor or kernel may hide the latter, and the instruction would then be a SIGILL. AMX is
// asked for here: the kernel gives a process the room for tiles only on request.
CpuFeatures DetectCpuFeatures() noexcept;

// Their names as /proc/cpuinfo writes them, in the order of the enum.
std::vector<std::string> FeatureNames(CpuFeatures features);

}  // namespace ktd
