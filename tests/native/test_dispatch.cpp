// The choice of kernels, for CPUs that this machine is not.
#include "checker.h"
#include "kernels/kernel_table.h"

namespace ktd::testing {
namespace {

constexpr CpuFeatures kHaswell = kAvx2 | kFma;
constexpr CpuFeatures kAlderLake = kHaswell | kAvxVnni;
constexpr CpuFeatures kSkylakeX = kHaswell | kAvx512F | kAvx512Bw | kAvx512Vl | kAvx512Dq;
constexpr CpuFeatures kZen4 = kSkylakeX | kAvx512Bf16 | kAvx512Vnni | kAvx512Vbmi;
constexpr CpuFeatures kSapphireRapids = kZen4 | kAmxTile | kAmxBf16 | kAmxInt8;

}  // namespace

TEST(TheBestKernelThatTheCpuRunsIsChosen) {
  EXPECT(std::string(SelectKernel("", kSapphireRapids).name) == "amx");
  EXPECT(std::string(SelectKernel("", kZen4).name) == "avx512_bf16");
  EXPECT(std::string(SelectKernel("", kSkylakeX).name) == "avx512");
  EXPECT(std::string(SelectKernel("", kAlderLake).name) == "avx2_vnni");
  EXPECT(std::string(SelectKernel("", kHaswell).name) == "avx2");
  EXPECT(std::string(SelectKernel("", kAvx2).name) == "scalar");
  EXPECT(std::string(SelectKernel("", 0).name) == "scalar");
}

TEST(ANamedKernelIsTakenThoughABetterOneRuns) {
  EXPECT(std::string(SelectKernel("scalar", kZen4).name) == "scalar");
  EXPECT(std::string(SelectKernel("avx2", kZen4).name) == "avx2");
}

TEST(ARefusalNamesWhatIsMissingAndWhatIsThere) {
  const std::string message =
      MessageOf<CheckError>([] { SelectKernel("avx512_bf16", kHaswell | kAvx512F); });
  EXPECT(message ==
             "this CPU cannot run the avx512_bf16 kernels: it lacks avx512bw, avx512vl, avx512dq, "
             "avx512_bf16, avx512_vnni, avx512vbmi; it can run avx2, scalar",
         message);
}

TEST(AnUnknownKernelIsRefusedByName) {
  const std::string message = MessageOf<CheckError>([] { SelectKernel("sse", kSkylakeX); });
  EXPECT(message == "there are no 'sse' kernels; this CPU can run avx512, avx2, scalar", message);
}

TEST(FeaturesAreFoundInOrderAndOnlyTogether) {
  const CpuFeatures have = DetectCpuFeatures();
  EXPECT((have & kAvx512Bf16) == 0 || (have & kAvx512F) != 0);
  EXPECT(FeatureNames(kAvx512Bf16 | kFma) == (std::vector<std::string>{"fma", "avx512_bf16"}));
}

}  // namespace ktd::testing
