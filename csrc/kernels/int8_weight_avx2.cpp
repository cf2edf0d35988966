#include "avx2_bytes.h"
#include "byte_panels.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

using Rows = ByteRows<Int8Floats, 4, 4, 2>;

}  // namespace

const ExpertKernel kInt8WeightAvx2 = GemvKernel<Rows>();

const ExpertKernel kInt8WeightAvx2Many = GemvKernel<RowPanels<Rows, Avx2Vec, 3>>();

}  // namespace ktd
