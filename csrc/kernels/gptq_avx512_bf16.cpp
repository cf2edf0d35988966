#include "expert_kernels.h"
#include "nibble_column_avx512_bf16.h"

namespace ktd {

const ExpertKernel kGptqAvx512Bf16 = GemvKernel<GptqColumns<Avx512Bf16Columns>>();

}  // namespace ktd
