// gptq on every ISA, with every group size and type of scales.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kGptq;

// Panels hold bf16((nibble - zero) * scale): half a unit in the last of eight places. SGLang's
// Triton kernel for W4A16 multiplies the same values.
constexpr double kBf16Rounding = 0x1p-8 + 0x1p-23;

}  // namespace

KERNEL_TESTS(ScalarGptq, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Gptq, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx512Gptq, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotGptq, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(AmxGptq, CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding))
KERNEL_TESTS(EmulatedAmxGptq,
             EmulatedOrSkip(kGptqAmxEmulated, kFormat).RoundsWeights(kBf16Rounding))
VARIANT_TESTS(ScalarGptqWide, CaseOrSkip("scalar", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx2GptqWide, CaseOrSkip("avx2", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx512GptqWide, CaseOrSkip("avx512", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(Avx512DotGptqWide, CaseOrSkip("avx512_bf16", kFormat, Which::kFew).Variant(1))
VARIANT_TESTS(AmxGptqWide,
              CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding).Variant(1))
VARIANT_TESTS(EmulatedAmxGptqWide,
              EmulatedOrSkip(kGptqAmxEmulated, kFormat).RoundsWeights(kBf16Rounding).Variant(1))
VARIANT_TESTS(ScalarGptqWidest, CaseOrSkip("scalar", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx2GptqWidest, CaseOrSkip("avx2", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx512GptqWidest, CaseOrSkip("avx512", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(Avx512DotGptqWidest, CaseOrSkip("avx512_bf16", kFormat, Which::kFew).Variant(2))
VARIANT_TESTS(AmxGptqWidest,
              CaseOrSkip("amx", kFormat, Which::kMany).RoundsWeights(kBf16Rounding).Variant(2))
VARIANT_TESTS(EmulatedAmxGptqWidest,
              EmulatedOrSkip(kGptqAmxEmulated, kFormat).RoundsWeights(kBf16Rounding).Variant(2))

}  // namespace ktd::testing
