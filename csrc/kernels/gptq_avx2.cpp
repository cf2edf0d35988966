#include "expert_kernels.h"
#include "nibble_column_avx2.h"

namespace ktd {

const ExpertKernel kGptqAvx2 = GemvKernel<GptqColumns<Avx2Columns>>();

}  // namespace ktd
