#include "expert_kernels.h"
#include "nibble_row_avx512.h"

namespace ktd {

const ExpertKernel kMxfp4Avx512 = GemvKernel<NibbleRows<Avx512NibbleRows, E2m1Values>>();

}  // namespace ktd
