#include "expert_kernels.h"
#include "nibble_panel.h"

namespace ktd {

const ExpertKernel KTD_AMX_NAME(kAwqAmx) = AmxKernel<NibbleColumnPanels<AwqRows>>();

}  // namespace ktd
