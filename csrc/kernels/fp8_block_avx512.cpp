#include "avx512_bytes.h"
#include "byte_panels.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

using Rows = BlockRows<Fp8Floats, 4, 2, 4>;

}  // namespace

const ExpertKernel kFp8BlockAvx512 = GemvKernel<Rows>();

const ExpertKernel kFp8BlockAvx512Many = GemvKernel<BlockPanels<Rows, Avx512Vec, 6>>();

}  // namespace ktd
