// bf16 <-> float32, one value at a time. Internal linkage on purpose: every kernel file is compiled
// for another ISA, and a shared inline function might be kept in the widest one's form.
#pragma once

#include <cstdint>
#include <cstring>

#include "../weight_format.h"

namespace ktd {
namespace {

[[maybe_unused]] inline float Widen(Bf16 value) noexcept {
  const std::uint32_t bits = std::uint32_t{value} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// To nearest, ties to even; overflows to infinity. A NaN that comes from bf16 values, or from an
// invalid operation, stays NaN without a branch: its low half is zero, so nothing carries.
[[maybe_unused]] inline Bf16 Narrow(float value) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<Bf16>(bits >> 16);
}

}  // namespace
}  // namespace ktd
