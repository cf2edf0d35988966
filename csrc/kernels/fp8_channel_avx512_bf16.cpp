#include "avx512_e4m3_rows.h"
#include "expert_kernels.h"

namespace ktd {

const ExpertKernel kFp8ChannelAvx512Bf16 = GemvKernel<ByteRows<Fp8Dot, 1, 2, 4>>();

}  // namespace ktd
