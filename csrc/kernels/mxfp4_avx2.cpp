#include "expert_kernels.h"
#include "nibble_row_avx2.h"

namespace ktd {

const ExpertKernel kMxfp4Avx2 = GemvKernel<NibbleRows<Avx2NibbleRows, E2m1Values>>();

}  // namespace ktd
