// Column-major nibbles (kGptq, kAwq) for a handful of tokens: outputs lie in the lanes, so that no
// sum has to be added up across a vector. Over an ISA: a type with
//   Int, Float, kLanes
//   kSteps        values of a double word's eight nibbles: 8 single ones, or 4 pairs of inputs
//   Zero          what is taken off the nibbles, as ZeroOf makes it from a lane's zero point
//   Values(w, j, zero)       nibble j of each double word (and nibble j + 4), less its zero point
//   Madd(acc, values, x, i)  plus their products with prepared input, or pair of inputs, i
//   GptqBytes, GptqPack, AwqBytes, AwqPack     prepared inputs
//   kAwqLines, AwqParts(lines, parts)          lines that are taken together, and as what
//   LoadLanes(p, n), Nibbles(p)     n double words; the nibbles of kLanes / 8 double words, by lane
//   LaneScales(type, p), StridedScales(type, p, n)    of outputs 0, 1, 2, ... and 0, 8, 16, ...
//   kGptqOne, kGptqMany, kGptqTokens, kAwqTokens      tiles
//   ZeroSums(), Fma(a, b, c), Store(p, v), Activate(...)
//
// Nibbles less zero points are small integers and exact; the products of a group are added up and
// the group's scale multiplies the sum, in float32.
#pragma once

#include "gemv.h"
#include "nibble.h"

namespace ktd {
namespace {

// Lines, measured on a Zen 4: 32 lines of 256 bytes and 64 of 64 gave 17.6 and 6.9 GB/s on a core;
// half of that distance 13.6 and 6.1; into the first cache, at its best distance, 10.2 and 5.6.
constexpr std::size_t kGptqDistance = 32;
constexpr std::size_t kAwqDistance = 64;

// Lines to be prefetched while others are read: a few ahead, and at the end of a tile the first
// ones of the next. Not a whole tile ahead as rows are, and not into the first cache: lines often
// lie a multiple of 4 KiB apart, and then it keeps only as many as it has ways.
class LinesAhead {
 public:
  LinesAhead(const std::uint8_t* first, std::size_t pitch, std::size_t lines, std::size_t distance,
             std::ptrdiff_t ahead) noexcept
      : next_(reinterpret_cast<std::uintptr_t>(first) + distance * pitch),
        pitch_(ahead == 0 ? 0 : pitch),
        left_(lines > distance ? lines - distance : 0),
        after_(reinterpret_cast<std::uintptr_t>(first) + static_cast<std::uintptr_t>(ahead)) {}

  // `bytes` of the next line.
  void Step(std::size_t bytes) noexcept {
    if (pitch_ == 0) return;
    if (left_-- == 0) next_ = after_;
    for (std::size_t byte = 0; byte < bytes; byte += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(next_ + byte), 0, 2);
    }
    next_ += pitch_;
  }

 private:
  std::uintptr_t next_;
  std::size_t pitch_;
  std::size_t left_;
  std::uintptr_t after_;
};

template <class Isa>
struct GptqColumns {
  static constexpr std::size_t kUnit = 64;  // 256 bytes of a line
  static constexpr int kRowsOne = Isa::kGptqOne;
  static constexpr int kRowsMany = Isa::kGptqMany;
  static constexpr int kRowsLast = Isa::kGptqMany;
  static constexpr int kTokens = Isa::kGptqTokens;

  static constexpr std::size_t PackedBytes(std::size_t columns) noexcept {
    return Isa::GptqBytes(columns);
  }
  static void Pack(const Matrix& m, const Bf16* x, std::uint8_t* packed) noexcept {
    Isa::GptqPack(x, m.columns, packed);
  }
  static const std::uint8_t* Address(const Matrix& m, std::size_t row) noexcept {
    return AddressOf(m, row);
  }

  template <int R, int N>
  static void Dot(const Matrix& m, std::size_t row, const std::uint8_t* const (&x)[N],
                  std::ptrdiff_t ahead, float (&sums)[N][R]) noexcept {
    constexpr int V = R / static_cast<int>(Isa::kLanes);
    constexpr std::size_t kBytes = Isa::kLanes * 4;
    using Float = typename Isa::Float;
    const std::size_t scale_bytes = ScaleBytes(m.scale_type);
    const std::uint8_t* line = Address(m, row);
    const std::uint8_t* scales = m.scales + row * scale_bytes;
    const std::uint8_t* zeros = m.zeros + row / 2;
    Float total[N][V];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total[t][v] = Isa::ZeroSums();
    }
    LinesAhead lines_ahead(line, m.pitch, m.columns / 8, kGptqDistance, ahead);
    std::size_t at = 0;
    for (std::size_t first = 0; first < m.columns; first += m.group) {
      typename Isa::Zero zero[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        // Stored less one.
        zero[v] = Isa::ZeroOf(Isa::AddOne(Isa::Nibbles(zeros + v * (Isa::kLanes / 2))));
      }
      Float acc[N][V];
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[t][v] = Isa::ZeroSums();
      }
      for (std::size_t k = 0; k < m.group; k += 8, line += m.pitch, at += Isa::kSteps) {
        typename Isa::Int w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          w[v] = Isa::LoadLanes(line + static_cast<std::size_t>(v) * kBytes, Isa::kLanes);
        }
        lines_ahead.Step(V * kBytes);
#pragma GCC unroll 8
        for (int j = 0; j < Isa::kSteps; ++j) {
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const auto values = Isa::Values(w[v], j, zero[v]);
#pragma GCC unroll 8
            for (int t = 0; t < N; ++t) {
              acc[t][v] = Isa::Madd(acc[t][v], values, x[t], at + static_cast<std::size_t>(j));
            }
          }
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const std::size_t lane = static_cast<std::size_t>(v) * Isa::kLanes;
        const Float scale = Isa::LaneScales(m.scale_type, scales + lane * scale_bytes);
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) total[t][v] = Isa::Fma(acc[t][v], scale, total[t][v]);
      }
      scales += m.scale_pitch;
      zeros += m.zero_pitch;
    }
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        Isa::Store(&sums[t][static_cast<std::size_t>(v) * Isa::kLanes], total[t][v]);
      }
    }
  }

  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    Isa::Activate(activation, gate, up, n, act);
  }
};

template <class Isa>
struct AwqColumns {
  static constexpr std::size_t kUnit = 64;  // 32 bytes of a line
  static constexpr int kRowsOne = static_cast<int>(Isa::kLanes) * 8;
  static constexpr int kRowsMany = kRowsOne;
  static constexpr int kRowsLast = 32;
  static constexpr int kTokens = Isa::kAwqTokens;
  static constexpr std::size_t kSlab = 32;  // leaves room for the sums of a whole tile

  static constexpr std::size_t PackedBytes(std::size_t columns) noexcept {
    return Isa::AwqBytes(columns);
  }
  static void Pack(const Matrix& m, const Bf16* x, std::uint8_t* packed) noexcept {
    Isa::AwqPack(x, m.columns, packed);
  }
  static const std::uint8_t* Address(const Matrix& m, std::size_t row) noexcept {
    return AddressOf(m, row);
  }

  // A vector of sums for each of the eight nibbles; lane i has outputs of the i-th eight.
  template <int R, int N>
  static void Dot(const Matrix& m, std::size_t row, const std::uint8_t* const (&x)[N],
                  std::ptrdiff_t ahead, float (&sums)[N][R]) noexcept {
    constexpr std::size_t kUsed = R / 8;  // lanes
    constexpr int kLines = Isa::kAwqLines;
    using Float = typename Isa::Float;
    using Int = typename Isa::Int;
    const std::size_t scale_bytes = ScaleBytes(m.scale_type);
    const std::uint8_t* line = Address(m, row);
    const std::uint8_t* scales = m.scales + row * scale_bytes;
    const std::uint8_t* zeros = m.zeros + row / 2;
    Float total[N][8];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) total[t][i] = Isa::ZeroSums();
    }
    LinesAhead lines_ahead(line, m.pitch, m.columns, kAwqDistance, ahead);
    std::size_t at = 0;
    for (std::size_t first = 0; first < m.columns; first += m.group) {
      const Int packed = Isa::LoadLanes(zeros, kUsed);
      typename Isa::Zero zero[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) zero[i] = Isa::ZeroOf(Isa::Nibble(packed, i));
      Float acc[N][8];
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) acc[t][i] = Isa::ZeroSums();
      }
      for (std::size_t k = 0; k < m.group; k += kLines, ++at) {
        Int lines[kLines];
        for (int l = 0; l < kLines; ++l, line += m.pitch) {
          lines[l] = Isa::LoadLanes(line, kUsed);
          lines_ahead.Step(64);
        }
        Int parts[8 / Isa::kSteps];
        Isa::AwqParts(lines, parts);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const auto values = Isa::Values(parts[i / Isa::kSteps], i % Isa::kSteps, zero[i]);
#pragma GCC unroll 8
          for (int t = 0; t < N; ++t) acc[t][i] = Isa::Madd(acc[t][i], values, x[t], at);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const auto output = static_cast<std::size_t>(kAwqOutputs[i]);
        const Float scale = Isa::StridedScales(m.scale_type, scales + output * scale_bytes, kUsed);
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) total[t][i] = Isa::Fma(acc[t][i], scale, total[t][i]);
      }
      scales += m.scale_pitch;
      zeros += m.zero_pitch;
    }
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        alignas(64) float lanes[Isa::kLanes];
        Isa::Store(lanes, total[t][i]);
        const auto output = static_cast<std::size_t>(kAwqOutputs[i]);
        for (std::size_t l = 0; l < kUsed; ++l) sums[t][8 * l + output] = lanes[l];
      }
    }
  }

  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    Isa::Activate(activation, gate, up, n, act);
  }
};

}  // namespace
}  // namespace ktd
