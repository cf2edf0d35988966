#include "expert_kernels.h"
#include "nibble_column_avx512.h"

namespace ktd {

const ExpertKernel kAwqAvx512 = GemvKernel<AwqColumns<Avx512FloatColumns>>();

}  // namespace ktd
