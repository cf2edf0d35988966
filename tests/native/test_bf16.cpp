// bf16 on every ISA.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kBf16;

}  // namespace

KERNEL_TESTS(ScalarBf16, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Bf16, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx512Bf16, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotBf16, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(Avx2ManyBf16, CaseOrSkip("avx2", kFormat, Which::kMany))
KERNEL_TESTS(Avx512ManyBf16, CaseOrSkip("avx512", kFormat, Which::kMany))
KERNEL_TESTS(AmxBf16, CaseOrSkip("amx", kFormat, Which::kMany))
KERNEL_TESTS(EmulatedAmxBf16, EmulatedOrSkip(kBf16AmxEmulated, kFormat))

TEST(AmxBf16ComputesALongBatchInSlabs) { CheckLongBatch(CaseOrSkip("amx", kFormat, Which::kMany)); }
TEST(EmulatedAmxBf16ComputesALongBatchInSlabs) {
  CheckLongBatch(EmulatedOrSkip(kBf16AmxEmulated, kFormat));
}

}  // namespace ktd::testing
