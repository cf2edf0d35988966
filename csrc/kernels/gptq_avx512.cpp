#include "expert_kernels.h"
#include "nibble_column_avx512.h"

namespace ktd {

const ExpertKernel kGptqAvx512 = GemvKernel<GptqColumns<Avx512FloatColumns>>();

}  // namespace ktd
