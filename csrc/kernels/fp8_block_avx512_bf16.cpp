#include "avx512_e4m3_rows.h"
#include "expert_kernels.h"

namespace ktd {

const ExpertKernel kFp8BlockAvx512Bf16 = GemvKernel<BlockRows<Fp8Dot, 1, 2, 4>>();

}  // namespace ktd
