#include "../check.h"
#include "kernel_table.h"

namespace ktd {
namespace {

constexpr CpuFeatures kAvx512 = kAvx2 | kFma | kAvx512F | kAvx512Bw | kAvx512Vl | kAvx512Dq;

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

const std::vector<Kernel>& KernelTable() {
  static const std::vector<Kernel> table = {
      {"avx512_bf16", kAvx512 | kAvx512Bf16, GateUpAvx512Bf16, DownAvx512Bf16},
      {"avx512", kAvx512, GateUpAvx512, DownAvx512},
      {"avx2", kAvx2 | kFma, GateUpAvx2, DownAvx2},
      {"scalar", 0, GateUpScalar, DownScalar},
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
