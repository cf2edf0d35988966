#include "expert_kernels.h"
#include "nibble_column_avx512_bf16.h"

namespace ktd {

const ExpertKernel kAwqAvx512Bf16 = GemvKernel<AwqColumns<Avx512Bf16Columns>>();

}  // namespace ktd
