#include "expert_kernels.h"
#include "nibble_row_avx2.h"

namespace ktd {

const ExpertKernel kInt4Avx2 = GemvKernel<NibbleRows<Avx2NibbleRows, Int4Values>>();

}  // namespace ktd
