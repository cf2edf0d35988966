// Experts quantised at load: int8 with a scale for each row, and int4 with a scale for each 32
// inputs, from a checkpoint in bf16 or FP8.
//
// Both are symmetric and keep zeros. A weight moves by at most half a step, that is 1/254 of the
// row's largest weight in int8; in int4 by 1/15 of the group's largest one, and the scale's
// rounding to bf16 (at most 2^-8) adds at most 0.03 of a step at the ends. NaN or infinity among
// the weights under one scale makes that scale NaN, so that an output which was not finite is NaN,
// never a plausible number.
#pragma once

#include <cstddef>
#include <cstdint>

#include "weight_format.h"

namespace ktd {

inline constexpr std::size_t kQuantisedGroup = 32;

// Where quantised rows go: rows one after the other, weights as kInt8Weight or kInt4 has them.
struct QuantisedRows {
  std::uint8_t* weights;  // [rows, columns] or [rows, columns / 2]
  std::uint8_t* scales;   // float32 [rows], or bf16 [rows, columns / 32]
};

// Quantises the rows of `from` (kBf16, kFp8Block or kFp8Channel) to `format` (kInt8Weight or kInt4)
// with `threads` threads, the calling one among them. Throws CheckError for other formats, and for
// columns that are no multiple of 32 in kInt4.
void Quantise(const Matrix& from, WeightFormat format, const QuantisedRows& to,
              std::size_t threads);

// The weights that the CPU kernels compute with, each rounded once to bf16, [rows, columns]: what a
// GPU slot of a quantised expert holds. `from` is in kInt8Weight or kInt4.
void Dequantise(const Matrix& from, Bf16* to, std::size_t threads);

}  // namespace ktd
