#include "avx2_bytes.h"
#include "byte_panels.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

using Rows = BlockRows<Fp8Floats, 4, 2, 2>;

}  // namespace

const ExpertKernel kFp8BlockAvx2 = GemvKernel<Rows>();

const ExpertKernel kFp8BlockAvx2Many = GemvKernel<BlockPanels<Rows, Avx2Vec, 3>>();

}  // namespace ktd
