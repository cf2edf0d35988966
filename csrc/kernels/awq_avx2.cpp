#include "expert_kernels.h"
#include "nibble_column_avx2.h"

namespace ktd {

const ExpertKernel kAwqAvx2 = GemvKernel<AwqColumns<Avx2Columns>>();

}  // namespace ktd
