#include "../check.h"
#include "expert_kernels.h"
#include "kernel_table.h"

namespace ktd {
namespace {

constexpr CpuFeatures kAvx512 = kAvx2 | kFma | kAvx512F | kAvx512Bw | kAvx512Vl | kAvx512Dq;
constexpr CpuFeatures kAvx512Dot = kAvx512 | kAvx512Bf16 | kAvx512Vnni | kAvx512Vbmi;
constexpr CpuFeatures kAmx = kAvx512Dot | kAmxTile | kAmxBf16 | kAmxInt8;

constexpr FormatKernels Both(const ExpertKernel& kernel) { return {&kernel, &kernel, 1}; }

std::string Joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string Runnable(CpuFeatures have) {
  std::vector<std::string> names;
  for (const Kernel& kernel : KernelTable()) {
    if ((kernel.required & ~have) == 0) names.emplace_back(kernel.name);
  }
  return Joined(names);
}

}  // namespace

// The columns stand in the order of WeightFormat.
const std::vector<Kernel>& KernelTable() {
  static const std::vector<Kernel> table = {
      {"amx",
       kAmx,
       {{&kBf16Avx512Bf16, &kBf16Amx, 5},
        {&kFp8BlockAvx512Bf16, &kFp8BlockAmx, 5},
        {&kFp8ChannelAvx512Bf16, &kFp8ChannelAmx, 5},
        {&kInt8Avx512Bf16, &kInt8Amx, 5},
        {&kInt8WeightAvx512, &kInt8WeightAmx, 5},
        {&kInt4Avx512Bf16, &kInt4Amx, 5},
        {&kMxfp4Avx512Bf16, &kMxfp4Amx, 5},
        {&kGptqAvx512Bf16, &kGptqAmx, 5},
        {&kAwqAvx512Bf16, &kAwqAmx, 5}}},
      {"avx512_bf16",
       kAvx512Dot,
       {Both(kBf16Avx512Bf16),
        Both(kFp8BlockAvx512Bf16),
        Both(kFp8ChannelAvx512Bf16),
        Both(kInt8Avx512Bf16),
        {&kInt8WeightAvx512, &kInt8WeightAvx512Many, 8},
        Both(kInt4Avx512Bf16),
        Both(kMxfp4Avx512Bf16),
        Both(kGptqAvx512Bf16),
        Both(kAwqAvx512Bf16)}},
      {"avx512",
       kAvx512,
       {{&kBf16Avx512, &kBf16Avx512Many, 8},
        {&kFp8BlockAvx512, &kFp8BlockAvx512Many, 8},
        {&kFp8ChannelAvx512, &kFp8ChannelAvx512Many, 8},
        Both(kInt8Avx512),
        {&kInt8WeightAvx512, &kInt8WeightAvx512Many, 8},
        Both(kInt4Avx512),
        Both(kMxfp4Avx512),
        Both(kGptqAvx512),
        Both(kAwqAvx512)}},
      {"avx2_vnni",  // what has no integers on both sides is avx2's
       kAvx2 | kFma | kAvxVnni,
       {{&kBf16Avx2, &kBf16Avx2Many, 8},
        {&kFp8BlockAvx2, &kFp8BlockAvx2Many, 8},
        {&kFp8ChannelAvx2, &kFp8ChannelAvx2Many, 8},
        {&kInt8Avx2Vnni, &kInt8Avx2VnniMany, 3},
        {&kInt8WeightAvx2, &kInt8WeightAvx2Many, 8},
        Both(kInt4Avx2),
        Both(kMxfp4Avx2),
        Both(kGptqAvx2),
        Both(kAwqAvx2)}},
      {"avx2",
       kAvx2 | kFma,
       {{&kBf16Avx2, &kBf16Avx2Many, 8},
        {&kFp8BlockAvx2, &kFp8BlockAvx2Many, 8},
        {&kFp8ChannelAvx2, &kFp8ChannelAvx2Many, 8},
        Both(kInt8Avx2),
        {&kInt8WeightAvx2, &kInt8WeightAvx2Many, 8},
        Both(kInt4Avx2),
        Both(kMxfp4Avx2),
        Both(kGptqAvx2),
        Both(kAwqAvx2)}},
      {"scalar",
       0,
       {Both(kBf16Scalar), Both(kFp8BlockScalar), Both(kFp8ChannelScalar), Both(kInt8Scalar),
        Both(kInt8WeightScalar), Both(kInt4Scalar), Both(kMxfp4Scalar), Both(kGptqScalar),
        Both(kAwqScalar)}},
  };
  return table;
}

const Kernel& SelectKernel(std::string_view name, CpuFeatures have) {
  for (const Kernel& kernel : KernelTable()) {
    if (!name.empty() && name != kernel.name) continue;
    const CpuFeatures missing = kernel.required & ~have;
    if (missing == 0) return kernel;
    KTD_CHECK(name.empty(), "this CPU cannot run the ", name, " kernels: it lacks ",
              Joined(FeatureNames(missing)), "; it can run ", Runnable(have));
  }
  KTD_CHECK(false, "there are no '", name, "' kernels; this CPU can run ", Runnable(have));
  return KernelTable().back();
}

}  // namespace ktd
