#include "expert_kernels.h"
#include "nibble_row_avx512_bf16.h"

namespace ktd {

const ExpertKernel kMxfp4Avx512Bf16 = GemvKernel<NibbleRows<Avx512Bf16NibbleRows, E2m1Values>>();

}  // namespace ktd
