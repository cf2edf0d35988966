// Every way to compute an expert: one object per format and ISA, defined in its own file.
#pragma once

#include "moe_job.h"

namespace ktd {

extern const ExpertKernel kBf16Scalar;
extern const ExpertKernel kBf16Avx2;
extern const ExpertKernel kBf16Avx2Many;
extern const ExpertKernel kBf16Avx512;
extern const ExpertKernel kBf16Avx512Many;
extern const ExpertKernel kBf16Avx512Bf16;
extern const ExpertKernel kBf16Amx;
extern const ExpertKernel kBf16AmxEmulated;  // only in the native tests

}  // namespace ktd
