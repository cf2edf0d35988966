// int8_weight on every ISA.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Weight;

}  // namespace

KERNEL_TESTS(ScalarInt8Weight, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Int8Weight, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx512Int8Weight, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotInt8Weight, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(Avx2ManyInt8Weight, CaseOrSkip("avx2", kFormat, Which::kMany))
KERNEL_TESTS(Avx512ManyInt8Weight, CaseOrSkip("avx512", kFormat, Which::kMany))
KERNEL_TESTS(AmxInt8Weight, CaseOrSkip("amx", kFormat, Which::kMany))
KERNEL_TESTS(EmulatedAmxInt8Weight, EmulatedOrSkip(kInt8WeightAmxEmulated, kFormat))

}  // namespace ktd::testing
