// mxfp4 on every ISA.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kMxfp4;

}  // namespace

KERNEL_TESTS(ScalarMxfp4, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Mxfp4, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx512Mxfp4, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotMxfp4, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(AmxMxfp4, CaseOrSkip("amx", kFormat, Which::kMany))
KERNEL_TESTS(EmulatedAmxMxfp4, EmulatedOrSkip(kMxfp4AmxEmulated, kFormat))

}  // namespace ktd::testing
