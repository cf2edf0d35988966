// fp8_channel on every ISA.
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kFp8Channel;

}  // namespace

KERNEL_TESTS(ScalarFp8Channel, CaseOrSkip("scalar", kFormat, Which::kFew))
KERNEL_TESTS(Avx2Fp8Channel, CaseOrSkip("avx2", kFormat, Which::kFew))
KERNEL_TESTS(Avx512Fp8Channel, CaseOrSkip("avx512", kFormat, Which::kFew))
KERNEL_TESTS(Avx512DotFp8Channel, CaseOrSkip("avx512_bf16", kFormat, Which::kFew))
KERNEL_TESTS(Avx2ManyFp8Channel, CaseOrSkip("avx2", kFormat, Which::kMany))
KERNEL_TESTS(Avx512ManyFp8Channel, CaseOrSkip("avx512", kFormat, Which::kMany))
KERNEL_TESTS(AmxFp8Channel, CaseOrSkip("amx", kFormat, Which::kMany))
KERNEL_TESTS(EmulatedAmxFp8Channel, EmulatedOrSkip(kFp8ChannelAmxEmulated, kFormat))

}  // namespace ktd::testing
