#include "avx512_bytes.h"
#include "byte_panels.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

using Rows = ByteRows<Int8Floats, 4, 4, 4>;

}  // namespace

const ExpertKernel kInt8WeightAvx512 = GemvKernel<Rows>();

const ExpertKernel kInt8WeightAvx512Many = GemvKernel<RowPanels<Rows, Avx512Vec, 6>>();

}  // namespace ktd
