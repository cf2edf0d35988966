// E4M3, the 8-bit floating point of the fp8 formats: sign, 4 bits of exponent, 3 of mantissa; the
// largest value is 448, the smallest 2^-9, 0x7f and 0xff are NaN, there is no infinity.
//
// How activations are quantised is what SGLang's CUDA kernels do (0.5.23, kernels/jit/csrc/gemm:
// per_token_group_quant.cuh for blocks, per_token_quant_fp8.cuh for channels), except that they are
// compiled with approximate division: a value that close (2^-22) to the middle between two E4M3
// values may be rounded the other way there. The largest magnitude is taken over what is not NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace ktd {
namespace {

constexpr float kE4m3Max = 448.0f;
constexpr float kE4m3Normal = 0x1p-6f;  // below it all values are multiples of 2^-9

// x is multiplied by `inverse` before it is rounded; what comes out is worth `scale` times that.
struct Quantiser {
  float scale;
  float inverse;
};

// Of a group of 128 inputs whose largest magnitude is `largest`.
[[maybe_unused]] inline Quantiser GroupQuantiser(float largest) noexcept {
  const float floored = largest < 1e-10f ? 1e-10f : largest;
  return {floored * (1.0f / kE4m3Max), kE4m3Max / floored};
}

// Of a whole token. A scale that float32 has only as a denormal is zero, as on the GPU.
[[maybe_unused]] inline Quantiser TokenQuantiser(float largest) noexcept {
  const float scale = largest / kE4m3Max;
  if (scale < 0x1p-126f) return {0.0f, 0.0f};
  return {scale, 1.0f / scale};
}

// Of a whole token in int8 (SGLang's per_token_quant_int8). The GPU loses a NaN there; here it
// makes the scale NaN, and an infinity does too, as there.
[[maybe_unused]] inline Quantiser Int8Quantiser(float largest) noexcept {
  if (!(largest <= 0x1.fffffep+127f)) return {0.0f * largest, 0.0f};
  const float floored = largest < 1e-10f ? 1e-10f : largest;
  return {floored / 127.0f, 127.0f / floored};
}

// The value of a code, for those who decode by table.
constexpr std::uint16_t E4m3AsBf16(unsigned code) noexcept {
  const unsigned sign = (code & 0x80u) << 8;
  const unsigned exponent = code >> 3 & 15u;
  const unsigned mantissa = code & 7u;
  if (exponent == 15 && mantissa == 7) return static_cast<std::uint16_t>(sign | 0x7fc0u);
  if (exponent != 0) {
    return static_cast<std::uint16_t>(sign | ((exponent + 120) << 7) | mantissa << 4);
  }
  if (mantissa == 0) return static_cast<std::uint16_t>(sign);
  const unsigned top = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;  // mantissa * 2^-9 is normal
  return static_cast<std::uint16_t>(sign | (top + 118) << 7 | (mantissa << (7 - top) & 0x7fu));
}

// The bytes of a code's bf16 value by nibbles of the code. The lower byte of a normal number is the
// code's lower nibble, shifted up; its upper byte follows from the upper nibble. Codes up to 15
// have a table for both bytes.
struct alignas(16) E4m3Nibbles {
  std::uint8_t high[16];
  std::uint8_t small_high[16];
  std::uint8_t small_low[16];
};

constexpr E4m3Nibbles MakeE4m3Nibbles() noexcept {
  E4m3Nibbles tables{};
  for (unsigned nibble = 0; nibble < 16; ++nibble) {
    // A code in the middle, since the ends of a nibble's codes may not be normal numbers.
    tables.high[nibble] = static_cast<std::uint8_t>(E4m3AsBf16(nibble << 4 | 8) >> 8);
    tables.small_high[nibble] = static_cast<std::uint8_t>(E4m3AsBf16(nibble) >> 8);
    tables.small_low[nibble] = static_cast<std::uint8_t>(E4m3AsBf16(nibble) & 0xff);
  }
  return tables;
}

[[maybe_unused]] constexpr E4m3Nibbles kE4m3Nibbles = MakeE4m3Nibbles();

[[maybe_unused]] inline float FromE4m3(std::uint8_t code) noexcept {
  return Widen(E4m3AsBf16(code));
}

// The nearest E4M3 value, ties to even, saturating; NaN stays NaN.
[[maybe_unused]] inline float RoundE4m3(float value) noexcept {
  if (value != value) return value;
  if (value > kE4m3Max) return kE4m3Max;
  if (value < -kE4m3Max) return -kE4m3Max;
  if (value < kE4m3Normal && value > -kE4m3Normal) return (value + 0x1.8p+14f) - 0x1.8p+14f;
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The largest magnitude that is not NaN: bf16 values are ordered as integers are.
[[maybe_unused]] inline float LargestOf(const Bf16* x, std::size_t n) noexcept {
  Bf16 largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Bf16 magnitude = x[i] & 0x7fff;
    if (magnitude <= 0x7f80 && magnitude > largest) largest = magnitude;
  }
  return Widen(largest);
}

}  // namespace
}  // namespace ktd
