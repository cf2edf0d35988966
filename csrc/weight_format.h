// The weight formats of experts that the pool reads, each in its checkpoint's own layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace ktd {

using Bf16 = std::uint16_t;  // the upper half of a float32

// N outputs (rows), K inputs (columns) of one projection of one expert.
enum class WeightFormat : std::uint8_t {
  kBf16,        // bf16 [N, K]
  kFp8Block,    // E4M3 [N, K], float32 scale for each block of 128 x 128; activations in E4M3 too
  kFp8Channel,  // E4M3 [N, K], float32 scale for each row; activations in E4M3 too
  kInt8,        // int8 [N, K], float32 scale for each row; activations in int8 too (W8A8)
  kInt8Weight,  // the same weights; activations stay bf16 (W8A16)
  kInt4,        // int32 [N, K / 8], the lowest nibble first, value nibble - 8; scale [N, K / group]
  kMxfp4,       // two E2M1 a byte, the lower nibble first, [N, K / 2]; E8M0 scale [N, K / 32]
  kGptq,        // int32 [K / 8, N], the lowest nibble first; scale [K / group, N]; zeros: int32
                // [K / group, N / 8], the lowest nibble first, each less one; value (nibble - zero)
  kAwq,         // int32 [K, N / 8], nibbles 0 to 7 are outputs 0 2 4 6 1 3 5 7; scale as kGptq's;
                // zeros: int32 [K / group, N / 8], packed as the weights; value (nibble - zero)
};
inline constexpr std::size_t kWeightFormats = 9;

// As --help, the configuration and results write them.
inline constexpr std::string_view kFormatNames[kWeightFormats] = {
    "bf16", "fp8_block", "fp8_channel", "int8", "int8_weight", "int4", "mxfp4", "gptq", "awq"};

enum class ScaleType : std::uint8_t { kNone, kFloat32, kBf16, kFloat16, kE8m0 };

constexpr std::size_t ScaleBytes(ScaleType type) noexcept {
  switch (type) {
    case ScaleType::kFloat32:
      return 4;
    case ScaleType::kBf16:
    case ScaleType::kFloat16:
      return 2;
    case ScaleType::kE8m0:
      return 1;
    case ScaleType::kNone:
      break;
  }
  return 0;
}

inline constexpr std::size_t kFp8Block = 128;   // rows and columns under one scale
inline constexpr std::size_t kMxfp4Group = 32;  // columns under one scale

// One projection of one expert, borrowed. Rows lie `pitch` bytes apart, so that interleaved gate
// and up rows are two projections with twice the pitch. The column-major formats (kGptq, kAwq) have
// lines of packed inputs instead, `pitch` bytes apart, and `weights` is at the projection's first
// output within a line.
struct Matrix {
  const std::uint8_t* weights;
  const std::uint8_t* scales;  // null for kBf16; by rows, blocks of rows, or (column-major) groups
  const std::uint8_t* zeros;   // kGptq and kAwq: packed as the weights' lines are; else null
  std::size_t pitch;
  std::size_t scale_pitch;
  std::size_t zero_pitch;
  std::size_t rows;
  std::size_t columns;
  std::size_t group;  // columns under one scale; 0 where one scale holds for the row
  ScaleType scale_type;
  WeightFormat format;
};

constexpr bool ColumnMajor(WeightFormat format) noexcept {
  return format == WeightFormat::kGptq || format == WeightFormat::kAwq;
}

// Where the weights of `row` begin; in the column-major formats, where its first line does.
inline const std::uint8_t* AddressOf(const Matrix& m, std::size_t row) noexcept {
  if (!ColumnMajor(m.format)) return m.weights + row * m.pitch;
  return m.weights + (m.format == WeightFormat::kGptq ? row * 4 : row / 2);
}

// What a worker reads next, to be prefetched; null: not known, or not worth it.
struct Ahead {
  const std::uint8_t* weights = nullptr;
  const std::uint8_t* scales = nullptr;  // of rows, where each has its own
};

inline Ahead AheadOf(const Matrix& m, std::size_t row) noexcept {
  const bool by_row = !ColumnMajor(m.format) && m.format != WeightFormat::kFp8Block;
  return {AddressOf(m, row),
          by_row && m.scales != nullptr ? m.scales + row * m.scale_pitch : nullptr};
}

}  // namespace ktd
