#include "avx2_e4m3_rows.h"
#include "expert_kernels.h"

namespace ktd {

const ExpertKernel kFp8BlockAvx2 = E4m3Kernel<E4m3BlockRows<4, 4, 2>>();

const ExpertKernel kFp8BlockAvx2Many =
    E4m3Kernel<BlockPanels<BlockRows<Fp8Floats, 4, 4, 2>, Avx2Vec, 3>>();

}  // namespace ktd
