// fp8_block on every ISA.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kFp8Block;

}  // namespace

KERNEL_TESTS(ScalarFp8Block, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Fp8Block, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx512Fp8Block, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotFp8Block, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(Avx2ManyFp8Block, CaseOrSkip("avx2", kFormat, Which::kMany))
KERNEL_TESTS(Avx512ManyFp8Block, CaseOrSkip("avx512", kFormat, Which::kMany))
KERNEL_TESTS(AmxFp8Block, CaseOrSkip("amx", kFormat, Which::kMany))
KERNEL_TESTS(EmulatedAmxFp8Block, EmulatedOrSkip(kFp8BlockAmxEmulated, kFormat))

TEST(AmxFp8BlockComputesALongBatchInSlabs) {
  CheckLongBatch(CaseOrSkip("amx", kFormat, Which::kMany));
}
TEST(EmulatedAmxFp8BlockComputesALongBatchInSlabs) {
  CheckLongBatch(EmulatedOrSkip(kFp8BlockAmxEmulated, kFormat));
}

}  // namespace ktd::testing
