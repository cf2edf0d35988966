#include "cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ktd {
namespace {

constexpr std::uint64_t kYmmState = 0x6;       // XCR0: XMM and the upper halves of YMM
constexpr std::uint64_t kZmmState = 0xe6;      // and opmasks, upper ZMM, ZMM16-31
constexpr std::uint64_t kTileState = 0x60000;  // TILECFG and TILEDATA

// Linux, Documentation/arch/x86/xstate.rst
constexpr long kArchReqXcompPerm = 0x1023;
constexpr long kTileData = 18;

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
    {kAvx512Vnni, "avx512_vnni"},
    {kAvx512Vbmi, "avx512vbmi"},
    {kAvxVnni, "avx_vnni"},
    {kAmxTile, "amx_tile"},
    {kAmxBf16, "amx_bf16"},
    {kAmxInt8, "amx_int8"},
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
  const std::uint32_t leaf_b = b;
  const std::uint32_t leaf_c = c;
  const std::uint32_t leaf_d = d;
  std::uint32_t subleaf_a = 0;
  if (a >= 1 && __get_cpuid_count(7, 1, &subleaf_a, &b, &c, &d) == 0) subleaf_a = 0;
  if (Bit(subleaf_a, 4)) found |= kAvxVnni;
  if ((xcr0 & kZmmState) != kZmmState || !Bit(leaf_b, 16)) return found;
  found |= kAvx512F;
  if (Bit(leaf_b, 17)) found |= kAvx512Dq;
  if (Bit(leaf_b, 30)) found |= kAvx512Bw;
  if (Bit(leaf_b, 31)) found |= kAvx512Vl;
  if (Bit(leaf_c, 1)) found |= kAvx512Vbmi;
  if (Bit(leaf_c, 11)) found |= kAvx512Vnni;
  if (Bit(subleaf_a, 5)) found |= kAvx512Bf16;
  if (!Bit(leaf_d, 24) || (xcr0 & kTileState) != kTileState) return found;
  if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) != 0) return found;
  found |= kAmxTile;
  if (Bit(leaf_d, 22)) found |= kAmxBf16;
  if (Bit(leaf_d, 25)) found |= kAmxInt8;
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
