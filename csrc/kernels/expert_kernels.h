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

extern const ExpertKernel kInt4Scalar;
extern const ExpertKernel kInt4Avx2;
extern const ExpertKernel kInt4Avx512;
extern const ExpertKernel kInt4Avx512Bf16;
extern const ExpertKernel kInt4Amx;
extern const ExpertKernel kInt4AmxEmulated;

extern const ExpertKernel kMxfp4Scalar;
extern const ExpertKernel kMxfp4Avx2;
extern const ExpertKernel kMxfp4Avx512;
extern const ExpertKernel kMxfp4Avx512Bf16;
extern const ExpertKernel kMxfp4Amx;
extern const ExpertKernel kMxfp4AmxEmulated;

extern const ExpertKernel kGptqScalar;
extern const ExpertKernel kGptqAvx2;
extern const ExpertKernel kGptqAvx512;
extern const ExpertKernel kGptqAvx512Bf16;
extern const ExpertKernel kGptqAmx;
extern const ExpertKernel kGptqAmxEmulated;

extern const ExpertKernel kAwqScalar;
extern const ExpertKernel kAwqAvx2;
extern const ExpertKernel kAwqAvx512;
extern const ExpertKernel kAwqAvx512Bf16;
extern const ExpertKernel kAwqAmx;
extern const ExpertKernel kAwqAmxEmulated;

}  // namespace ktd
