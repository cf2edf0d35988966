// int4 on every ISA, with every group size and type of scales.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4;

// Panels hold bf16((nibble - zero) * scale): half a unit in the last of eight places. SGLang's
// Triton kernel for W4A16 multiplies the same values.
constexpr double kBf16Rounding = 0x1p-8 + 0x1p-23;

}  // namespace

KERNEL_TESTS(ScalarInt4, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Int4, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx512Int4, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotInt4, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(AmxInt4, CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding))
KERNEL_TESTS(EmulatedAmxInt4,
             EmulatedOrSkip(kInt4AmxEmulated, kFormat).RoundsWeights(kBf16Rounding))
VARIANT_TESTS(ScalarInt4Wide, CaseOrSkip("scalar", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx2Int4Wide, CaseOrSkip("avx2", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx512Int4Wide, CaseOrSkip("avx512", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx512DotInt4Wide, CaseOrSkip("avx512_bf16", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(AmxInt4Wide,
              CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding).Variant(1))
VARIANT_TESTS(EmulatedAmxInt4Wide,
              EmulatedOrSkip(kInt4AmxEmulated, kFormat).RoundsWeights(kBf16Rounding).Variant(1))
VARIANT_TESTS(ScalarInt4Widest, CaseOrSkip("scalar", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx2Int4Widest, CaseOrSkip("avx2", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx512Int4Widest, CaseOrSkip("avx512", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx512DotInt4Widest, CaseOrSkip("avx512_bf16", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(AmxInt4Widest,
              CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding).Variant(2))
VARIANT_TESTS(EmulatedAmxInt4Widest,
              EmulatedOrSkip(kInt4AmxEmulated, kFormat).RoundsWeights(kBf16Rounding).Variant(2))

TEST(AmxInt4ComputesALongBatchInSlabs) { CheckLongBatch(CaseOrSkip("amx", kFormat, Which::kMany)); }
TEST(EmulatedAmxInt4ComputesALongBatchInSlabs) {
  CheckLongBatch(EmulatedOrSkip(kInt4AmxEmulated, kFormat));
}

}  // namespace ktd::testing
