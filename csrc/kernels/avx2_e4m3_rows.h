// Rows of E4M3 weights against E4M3 activations on AVX2, for a handful of tokens.
//
// Sign, exponent and mantissa of a code move to their places in float32: one multiplication of
// bytes and two operations on every eight weights. What comes out is 2^-120 times the value, a
// denormal where the code is one, and NaN codes look like 480: the prepared activations are 2^118
// times theirs, and rows with a NaN code are looked for while they stream by, and then singly.
#pragma once

#include <limits>

#include "avx2_bytes.h"
#include "byte_panels.h"

namespace ktd {
namespace {

// Denormals count while this lives, whatever the thread's other code wants.
class KeepDenormals {
 public:
  KeepDenormals() noexcept : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~kFlush); }
  ~KeepDenormals() { _mm_setcsr(before_); }
  KeepDenormals(const KeepDenormals&) = delete;
  KeepDenormals& operator=(const KeepDenormals&) = delete;

 private:
  static constexpr unsigned kFlush = 0x8040;  // flush to zero, denormals are zero
  unsigned before_;
};

// Whether there are NaN among codes: without their sign they are the largest.
class NanCodes {
 public:
  void Add(__m256i codes) noexcept {
    most_ = _mm256_max_epu8(most_, _mm256_add_epi8(codes, codes));
  }
  bool Any() const noexcept {
    const __m256i nan = _mm256_cmpeq_epi8(most_, _mm256_set1_epi8(-2));
    return _mm256_testz_si256(nan, nan) == 0;
  }

 private:
  __m256i most_ = _mm256_setzero_si256();
};

[[gnu::noinline]] inline bool HasNanCode(const std::uint8_t* row, std::size_t columns) noexcept {
  NanCodes seen;
  std::size_t i = 0;
  for (; i + 32 <= columns; i += 32) seen.Add(LoadBytes(row + i));
  seen.Add(LoadBytes(PaddedBytes(row + i, columns - i).at));
  return seen.Any();
}

// Activations for these rows: see E4m3Floats for their order.
struct E4m3Raw : E4m3Floats<0x1p118f> {
  // acc[t][r] += the products of 32 inputs. The halves of a code's double word take turns, so that
  // tokens and sums fit the registers; the second reads the weights again.
  template <int R, int N>
  [[gnu::always_inline]] static void AddStep(const std::uint8_t* const (&rows)[R],
                                             const float* const (&x)[N], std::size_t i,
                                             std::ptrdiff_t ahead, NanCodes& seen,
                                             __m256 (&acc)[N][R]) noexcept {
    const __m256i places = _mm256_set1_epi32(static_cast<int>(0x87f00000u));
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      __m256 first[N];
      __m256 second[N];
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
        first[t] = _mm256_load_ps(x[t] + i + 16 * odd);
        second[t] = _mm256_load_ps(x[t] + i + 16 * odd + 8);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        if (ahead != 0 && odd == 0) PrefetchAt(rows[r] + i, ahead);
        const __m256i codes = LoadBytes(rows[r] + i);
        if (odd == 0) seen.Add(codes);
        const __m256i words =
            _mm256_maddubs_epi16(_mm256_set1_epi16(odd == 0 ? 16 : 16 << 8), codes);
        const __m256 low =
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(words, 16), places));
        const __m256 high = _mm256_castsi256_ps(_mm256_and_si256(words, places));
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) {
          acc[t][r] = _mm256_fmadd_ps(high, second[t], _mm256_fmadd_ps(low, first[t], acc[t][r]));
        }
      }
      asm volatile("" ::: "memory");
    }
  }

  // The same for inputs [begin, end); begin is a multiple of 32.
  template <int R, int N>
  [[gnu::always_inline]] static void Add(const std::uint8_t* const (&rows)[R],
                                         const float* const (&x)[N], std::size_t begin,
                                         std::size_t end, std::ptrdiff_t ahead, NanCodes& seen,
                                         __m256 (&acc)[N][R]) noexcept {
    std::size_t i = begin;
    for (; i + 32 <= end; i += 32) AddStep(rows, x, i, ahead, seen, acc);
    if (i == end) return;
    alignas(32) std::uint8_t padded[R][32] = {};
    const std::uint8_t* last[R];
    const float* last_x[N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      for (std::size_t k = i; k < end; ++k) padded[r][k - i] = rows[r][k];
      last[r] = padded[r];
    }
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) last_x[t] = x[t] + i;
    AddStep(last, last_x, 0, 0, seen, acc);
  }

 private:
  static void PrefetchAt(const std::uint8_t* here, std::ptrdiff_t ahead) noexcept {
    __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(here) +
                                                     static_cast<std::uintptr_t>(ahead)),
                       0, 2);
  }
};

template <int R, int N>
inline void MarkNanRows(const Matrix& m, const std::uint8_t* const (&rows)[R], const NanCodes& seen,
                        float (&sums)[N][R]) noexcept {
  if (!seen.Any()) [[likely]]
    return;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (!HasNanCode(rows[r], m.columns)) continue;
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) sums[t][r] = std::numeric_limits<float>::quiet_NaN();
  }
}

// Dot as gemv.h wants it, for one scale per row.
template <int RowsOne, int RowsMany, int Tokens>
struct E4m3ChannelRows : ByteRows<E4m3Raw, RowsOne, RowsMany, Tokens> {
  template <int R, int N>
  static void Dot(const Matrix& m, std::size_t row, const std::uint8_t* const (&tokens)[N],
                  std::ptrdiff_t ahead, float (&sums)[N][R]) noexcept {
    using Rows = E4m3ChannelRows;
    const std::uint8_t* rows[R];
    const float* x[N];
    __m256 acc[N][R];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
      x[t] = reinterpret_cast<const float*>(tokens[t]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[t][r] = _mm256_setzero_ps();
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rows[r] = Rows::Address(m, row + static_cast<std::size_t>(r));
    NanCodes seen;
    E4m3Raw::Add(rows, x, 0, m.columns, ahead, seen, acc);
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
      const float token = Rows::Of(m, tokens[t]).scale;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        sums[t][r] = SumEight(acc[t][r]) * (token * RowScale(m, row + static_cast<std::size_t>(r)));
      }
    }
    MarkNanRows(m, rows, seen, sums);
  }
};

// And for scales per block of 128 x 128, under one of which a tile's rows lie.
template <int RowsOne, int RowsMany, int Tokens>
struct E4m3BlockRows : BlockRows<E4m3Raw, RowsOne, RowsMany, Tokens> {
  template <int R, int N>
  static void Dot(const Matrix& m, std::size_t row, const std::uint8_t* const (&tokens)[N],
                  std::ptrdiff_t ahead, float (&sums)[N][R]) noexcept {
    using Rows = E4m3BlockRows;
    const std::uint8_t* rows[R];
    const float* x[N];
    const float* of[N];
    __m256 total[N][R];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
      x[t] = reinterpret_cast<const float*>(tokens[t]);
      of[t] = Rows::Of(m, tokens[t]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) total[t][r] = _mm256_setzero_ps();
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rows[r] = Rows::Address(m, row + static_cast<std::size_t>(r));
    const float* scales = BlockScales(m, row);
    NanCodes seen;
    for (std::size_t begin = 0; begin < m.columns; begin += kFp8Block) {
      __m256 acc[N][R];
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[t][r] = _mm256_setzero_ps();
      }
      E4m3Raw::Add(rows, x, begin, Smaller(begin + kFp8Block, m.columns), ahead, seen, acc);
      const std::size_t b = begin / kFp8Block;
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
        const __m256 factor = _mm256_set1_ps(scales[b] * of[t][b]);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          total[t][r] = _mm256_fmadd_ps(acc[t][r], factor, total[t][r]);
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[t][r] = SumEight(total[t][r]);
    }
    MarkNanRows(m, rows, seen, sums);
  }
};

template <class F>
inline void GateUpWithDenormals(const GateUpJob& job) noexcept {
  const KeepDenormals keep;
  GateUpGemv<F>(job);
}

template <class F>
inline void DownWithDenormals(const DownJob& job) noexcept {
  const KeepDenormals keep;
  DownGemv<F>(job);
}

// GemvKernel of gemv.h for weights that become denormals.
template <class F>
constexpr ExpertKernel E4m3Kernel() noexcept {
  ExpertKernel kernel = GemvKernel<F>();
  kernel.gate_up = GateUpWithDenormals<F>;
  kernel.down = DownWithDenormals<F>;
  return kernel;
}

}  // namespace
}  // namespace ktd
