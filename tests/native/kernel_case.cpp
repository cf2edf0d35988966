#include "kernel_case.h"

#include "checker.h"

namespace ktd::testing {
namespace {

const Kernel& Named(const char* isa) {
  for (const Kernel& kernel : KernelTable()) {
    if (std::string_view(kernel.name) == isa) return kernel;
  }
  throw Failure(Concat("there are no kernels called ", isa));
}

void SkipUnless(CpuFeatures required, std::string_view what) {
#ifdef __SANITIZE_THREAD__
  SKIP("a kernel runs in one thread, where ThreadSanitizer has nothing to see");
#endif
  std::string missing;
  for (const std::string& feature : FeatureNames(required & ~DetectCpuFeatures())) {
    missing += " " + feature;
  }
  if (!missing.empty()) SKIP("this CPU cannot run the ", what, " kernels, it lacks", missing);
}

}  // namespace

KernelCase KernelCase::Variant(int which) const {
  KernelCase other = *this;
  other.variant = which;
  other.name += Concat(", variant ", which);
  return other;
}

KernelCase KernelCase::RoundsWeights(double error) const {
  KernelCase other = *this;
  other.weight_error = error;
  return other;
}

KernelCase CaseOrSkip(const char* isa, WeightFormat format, Which which) {
  const Kernel& kernel = Named(isa);
  SkipUnless(kernel.required, isa);
  const FormatKernels& kernels = kernel.For(format);
  const auto name = kFormatNames[static_cast<std::size_t>(format)];
  return {Concat(isa, " ", name, which == Which::kFew ? " few" : " many"),
          which == Which::kFew ? kernels.few : kernels.many, format};
}

KernelCase EmulatedOrSkip(const ExpertKernel& kernel, WeightFormat format) {
  SkipUnless(Named("avx512_bf16").required, "emulated amx");
  return {Concat("emulated amx ", kFormatNames[static_cast<std::size_t>(format)]), &kernel, format};
}

}  // namespace ktd::testing
