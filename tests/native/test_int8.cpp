// int8 on every ISA.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8;

}  // namespace

KERNEL_TESTS(ScalarInt8, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Int8, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx2VnniInt8, CaseOrSkip("avx2_vnni", kFormat, Which::kFew))
KERNEL_TESTS(Avx2VnniManyInt8, CaseOrSkip("avx2_vnni", kFormat, Which::kMany))
KERNEL_TESTS(Avx512Int8, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotInt8, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(AmxInt8, CaseOrSkip("amx", kFormat, Which::kMany))
KERNEL_TESTS(EmulatedAmxInt8, EmulatedOrSkip(kInt8AmxEmulated, kFormat))

TEST(AmxInt8ComputesALongBatchInSlabs) { CheckLongBatch(CaseOrSkip("amx", kFormat, Which::kMany)); }
TEST(EmulatedAmxInt8ComputesALongBatchInSlabs) {
  CheckLongBatch(EmulatedOrSkip(kInt8AmxEmulated, kFormat));
}

}  // namespace ktd::testing
