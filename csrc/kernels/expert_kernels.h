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
extern const ExpertKernel kBf16AmxEmulated;  // only in the native tests, as all the emulated ones

extern const ExpertKernel kFp8BlockScalar;
extern const ExpertKernel kFp8BlockAvx2;
extern const ExpertKernel kFp8BlockAvx2Many;
extern const ExpertKernel kFp8BlockAvx512;
extern const ExpertKernel kFp8BlockAvx512Many;
extern const ExpertKernel kFp8BlockAvx512Bf16;
extern const ExpertKernel kFp8BlockAmx;
extern const ExpertKernel kFp8BlockAmxEmulated;

extern const ExpertKernel kFp8ChannelScalar;
extern const ExpertKernel kFp8ChannelAvx2;
extern const ExpertKernel kFp8ChannelAvx2Many;
extern const ExpertKernel kFp8ChannelAvx512;
extern const ExpertKernel kFp8ChannelAvx512Many;
extern const ExpertKernel kFp8ChannelAvx512Bf16;
extern const ExpertKernel kFp8ChannelAmx;
extern const ExpertKernel kFp8ChannelAmxEmulated;

extern const ExpertKernel kInt8Scalar;
extern const ExpertKernel kInt8Avx2;
extern const ExpertKernel kInt8Avx2Vnni;
extern const ExpertKernel kInt8Avx2VnniMany;
extern const ExpertKernel kInt8Avx512;
extern const ExpertKernel kInt8Avx512Bf16;
extern const ExpertKernel kInt8Amx;
extern const ExpertKernel kInt8AmxEmulated;

extern const ExpertKernel kInt8WeightScalar;
extern const ExpertKernel kInt8WeightAvx2;
extern const ExpertKernel kInt8WeightAvx2Many;
extern const ExpertKernel kInt8WeightAvx512;  // avx512_bf16 has nothing better
extern const ExpertKernel kInt8WeightAvx512Many;
extern const ExpertKernel kInt8WeightAmx;
extern const ExpertKernel kInt8WeightAmxEmulated;

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
