#include "expert_kernels.h"
#include "nibble_panel.h"

namespace ktd {

const ExpertKernel KTD_AMX_NAME(kMxfp4Amx) = AmxKernel<NibbleRowPanels<E2m1Values>>();

}  // namespace ktd
