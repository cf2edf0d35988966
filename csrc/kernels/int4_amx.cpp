#include "expert_kernels.h"
#include "nibble_panel.h"

namespace ktd {

const ExpertKernel KTD_AMX_NAME(kInt4Amx) = AmxKernel<NibbleRowPanels<Int4Values>>();

}  // namespace ktd
