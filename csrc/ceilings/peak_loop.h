// One loop that does nothing but one instruction's arithmetic, out of registers.
#pragma once

#include <cstdint>

#include "../cpu_features.h"

namespace ktd {

struct PeakLoop {
  const char* name;
  CpuFeatures required;
  double operations;     // of one round; a multiply-add is two
  std::uint64_t rounds;  // some tens of microseconds
  void (*run)(std::uint64_t rounds) noexcept;
};

extern const PeakLoop kPeakSse2F32;
extern const PeakLoop kPeakAvx2F32;
extern const PeakLoop kPeakAvx2Int16;
extern const PeakLoop kPeakAvxVnniInt8;
extern const PeakLoop kPeakAvx512F32;
extern const PeakLoop kPeakAvx512Int16;
extern const PeakLoop kPeakAvx512Bf16;
extern const PeakLoop kPeakAvx512Int8;
extern const PeakLoop kPeakAmxBf16;
extern const PeakLoop kPeakAmxInt8;

// Each file of a loop is compiled for its ISA; what follows must not leave it.
namespace {

// `kChains` sums that depend on nothing but themselves, so that only the instruction's throughput
// limits: more of them than its latency times the units that execute it.
template <int kChains, class V, class Step>
inline V RunChains(V seed, V left, V right, std::uint64_t rounds, Step step) noexcept {
  V sums[kChains];
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) {
    sums[i] = seed;
    __asm__ volatile("" : "+v"(sums[i]));  // otherwise all chains are one to the compiler
  }
  for (std::uint64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) {
      __asm__ volatile("" : "+v"(left));  // otherwise a product that does not change is hoisted
      sums[i] = step(sums[i], left, right);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) __asm__ volatile("" : : "v"(sums[i]));
  return sums[0];
}

}  // namespace
}  // namespace ktd
