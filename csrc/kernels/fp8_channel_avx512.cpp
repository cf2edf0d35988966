#include "avx512_bytes.h"
#include "byte_panels.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

using Rows = ByteRows<Fp8Floats, 4, 4, 4>;

}  // namespace

const ExpertKernel kFp8ChannelAvx512 = GemvKernel<Rows>();

const ExpertKernel kFp8ChannelAvx512Many = GemvKernel<RowPanels<Rows, Avx512Vec, 6>>();

}  // namespace ktd
