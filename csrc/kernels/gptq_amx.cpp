#include "expert_kernels.h"
#include "nibble_panel.h"

namespace ktd {

const ExpertKernel KTD_AMX_NAME(kGptqAmx) = AmxKernel<NibbleColumnPanels<GptqRows>>();

}  // namespace ktd
