#include "avx2_bytes.h"
#include "byte_panels.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

using Rows = ByteRows<Fp8Floats, 4, 4, 2>;

}  // namespace

const ExpertKernel kFp8ChannelAvx2 = GemvKernel<Rows>();

const ExpertKernel kFp8ChannelAvx2Many = GemvKernel<RowPanels<Rows, Avx2Vec, 3>>();

}  // namespace ktd
