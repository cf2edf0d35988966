// awq on every ISA, with every group size and type of scales.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kAwq;

// Panels hold bf16((nibble - zero) * scale): half a unit in the last of eight places. SGLang's
// Triton kernel for W4A16 multiplies the same values.
constexpr double kBf16Rounding = 0x1p-8 + 0x1p-23;

}  // namespace

KERNEL_TESTS(ScalarAwq, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Awq, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx512Awq, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotAwq, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(AmxAwq, CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding))
KERNEL_TESTS(EmulatedAmxAwq, EmulatedOrSkip(kAwqAmxEmulated, kFormat).RoundsWeights(kBf16Rounding))
VARIANT_TESTS(ScalarAwqWide, CaseOrSkip("scalar", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx2AwqWide, CaseOrSkip("avx2", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx512AwqWide, CaseOrSkip("avx512", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx512DotAwqWide, CaseOrSkip("avx512_bf16", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(AmxAwqWide,
              CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding).Variant(1))
VARIANT_TESTS(EmulatedAmxAwqWide,
              EmulatedOrSkip(kAwqAmxEmulated, kFormat).RoundsWeights(kBf16Rounding).Variant(1))
VARIANT_TESTS(ScalarAwqWidest, CaseOrSkip("scalar", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx2AwqWidest, CaseOrSkip("avx2", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx512AwqWidest, CaseOrSkip("avx512", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx512DotAwqWidest, CaseOrSkip("avx512_bf16", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(AmxAwqWidest,
              CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding).Variant(2))
VARIANT_TESTS(EmulatedAmxAwqWidest,
              EmulatedOrSkip(kAwqAmxEmulated, kFormat).RoundsWeights(kBf16Rounding).Variant(2))

}  // namespace ktd::testing
