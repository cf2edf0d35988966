#include "expert_kernels.h"
#include "nibble_row_avx512.h"

namespace ktd {

const ExpertKernel kInt4Avx512 = GemvKernel<NibbleRows<Avx512NibbleRows, Int4Values>>();

}  // namespace ktd
