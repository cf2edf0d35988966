#include "cpu_features.h"

#include <cpuid.h>

namespace ktd {
namespace {

constexpr std::uint64_t kYmmState = 0x6;   // XCR0: XMM and the upper halves of YMM
constexpr std::uint64_t kZmmState = 0xe6;  // and opmasks, upper ZMM, ZMM16-31

std::uint64_t ReadXcr0() noexcept {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

constexpr bool Bit(std::uint32_t word, int bit) noexcept { return ((word >> bit) & 1u) != 0; }

struct Name {
  CpuFeature feature;
  const char* text;
};

constexpr Name kNames[] = {
    {kAvx2, "avx2"},
    {kFma, "fma"},
    {kAvx512F, "avx512f"},
    {kAvx512Bw, "avx512bw"},
    {kAvx512Vl, "avx512vl"},
    {kAvx512Dq, "avx512dq"},
    {kAvx512Bf16, "avx512_bf16"},
};

}  // namespace

// Bit positions: Intel SDM volume 2A, CPUID leaves 01H and 07H.
CpuFeatures DetectCpuFeatures() noexcept {
  std::uint32_t a = 0;
  std::uint32_t b = 0;
  std::uint32_t c = 0;
  std::uint32_t d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !Bit(c, 27)) return 0;  // no OSXSAVE
  const bool fma = Bit(c, 12);
  const std::uint64_t xcr0 = ReadXcr0();
  if ((xcr0 & kYmmState) != kYmmState) return 0;
  CpuFeatures found = fma ? kFma : 0u;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return found;
  if (Bit(b, 5)) found |= kAvx2;
  if ((xcr0 & kZmmState) != kZmmState || !Bit(b, 16)) return found;
  found |= kAvx512F;
  if (Bit(b, 17)) found |= kAvx512Dq;
  if (Bit(b, 30)) found |= kAvx512Bw;
  if (Bit(b, 31)) found |= kAvx512Vl;
  const std::uint32_t subleaves = a;
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && Bit(a, 5)) {
    found |= kAvx512Bf16;
  }
  return found;
}

std::vector<std::string> FeatureNames(CpuFeatures features) {
  std::vector<std::string> names;
  for (const Name& name : kNames) {
    if ((features & name.feature) != 0) names.emplace_back(name.text);
  }
  return names;
}

}  // namespace ktd
