// What a nibble of the 4-bit formats means, and their scales and zero points, one at a time.
// Internal linkage (see bf16.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace ktd {
namespace {

// kInt4; E2M1 (OCP Microscaling Formats, section 5.3.3).
struct Int4Values {
  static constexpr float kOf[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
};
struct E2m1Values {
  static constexpr float kOf[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
};
// kGptq and kAwq, where the zero point is still to be taken off.
struct UnsignedValues {
  static constexpr float kOf[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
};

// The output of eight that nibble i of kAwq's double words belongs to.
constexpr int kAwqOutputs[8] = {0, 2, 4, 6, 1, 3, 5, 7};
// The nibble that output i of eight is in.
constexpr int kAwqNibbles[8] = {0, 4, 1, 5, 2, 6, 3, 7};

[[maybe_unused]] inline float FromBits(std::uint32_t bits) noexcept {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Scaling by 2^112 moves the exponent's bias, of denormals too; infinity and NaN need its top bits.
[[maybe_unused]] inline float WidenHalf(std::uint16_t half) noexcept {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t rest = (half & 0x7fffu) << 13;
  float value = FromBits(rest) * 0x1p112f;
  if ((half & 0x7c00u) == 0x7c00u) value = FromBits(rest | 0x7f800000u);
  return sign == 0 ? value : -value;
}

// 2^(scale - 127): 0 is a denormal of float32, 255 is NaN.
[[maybe_unused]] inline float WidenE8m0(std::uint8_t scale) noexcept {
  if (scale == 255) return FromBits(0x7fc00000u);
  return FromBits(scale == 0 ? 0x00400000u : std::uint32_t{scale} << 23);
}

[[maybe_unused]] inline float ScaleAt(ScaleType type, const std::uint8_t* scales,
                                      std::size_t i) noexcept {
  std::uint16_t narrow;
  float wide = 1.0f;
  switch (type) {
    case ScaleType::kFloat32:
      std::memcpy(&wide, scales + i * 4, 4);
      return wide;
    case ScaleType::kBf16:
      std::memcpy(&narrow, scales + i * 2, 2);
      return Widen(narrow);
    case ScaleType::kFloat16:
      std::memcpy(&narrow, scales + i * 2, 2);
      return WidenHalf(narrow);
    case ScaleType::kE8m0:
      return WidenE8m0(scales[i]);
    case ScaleType::kNone:
      break;
  }
  return wide;
}

[[maybe_unused]] inline unsigned NibbleAt(const std::uint8_t* packed, std::size_t i) noexcept {
  return (packed[i / 2] >> (i % 2 * 4)) & 15u;
}

// What is taken off the nibbles of column-major formats. GPTQ stores one less (and 15 for 16).
[[maybe_unused]] inline float ZeroAt(const Matrix& m, std::size_t group,
                                     std::size_t output) noexcept {
  const std::uint8_t* line = m.zeros + group * m.zero_pitch;
  if (m.format == WeightFormat::kGptq) return static_cast<float>(NibbleAt(line, output) + 1);
  const auto nibble = static_cast<std::size_t>(kAwqNibbles[output % 8]);
  return static_cast<float>(NibbleAt(line, output / 8 * 8 + nibble));
}

}  // namespace
}  // namespace ktd
