// Rows of nibbles on AVX2: vpshufb looks up the two bytes of a nibble's bf16 value, and two
// operations widen 16 of those to float32. Both are exact.
#pragma once

#include "nibble_avx2.h"
#include "nibble_row.h"

namespace ktd {
namespace {

constexpr std::uint8_t Bf16Byte(float value, unsigned byte) noexcept {
  return static_cast<std::uint8_t>(__builtin_bit_cast(std::uint32_t, value) >> (16 + 8 * byte));
}

template <class Values>
struct ByteTable {
  struct alignas(16) Bytes {
    std::uint8_t at[2][16];
    constexpr Bytes() : at() {
      for (unsigned i = 0; i < 32; ++i) at[i / 16][i % 16] = Bf16Byte(Values::kOf[i % 16], i / 16);
    }
  };
  static constexpr Bytes kBytes{};
  __m256i low =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kBytes.at[0])));
  __m256i high =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kBytes.at[1])));
};

struct Avx2NibbleRows {
  using Int = __m256i;
  using Float = __m256;
  static constexpr std::size_t kLanes = 8;
  static constexpr std::size_t kBlock = 64;
  static constexpr int kRowsOne = 4;
  static constexpr int kRowsMany = 2;
  static constexpr int kTokens = 4;
  static constexpr std::size_t kPackedBlock = kBlock * sizeof(float);
  template <class Values>
  using Table = ByteTable<Values>;

  // In the order in which Multiply comes to them: the lower nibbles of bytes 0, 2, 4 and 6 of each
  // half, of bytes 1, 3, 5 and 7, then of 8 to 15 likewise, and all of that for the upper nibbles.
  static void PackBlock(const Bf16* x, std::size_t n, std::uint8_t* to) noexcept {
    float* out = reinterpret_cast<float*>(to);
    for (std::size_t upper = 0; upper < 2; ++upper) {
      for (std::size_t v = 0; v < 4; ++v) {
        for (std::size_t lane = 0; lane < 8; ++lane) {
          const std::size_t byte = lane / 4 * 16 + v / 2 * 8 + lane % 4 * 2 + v % 2;
          const std::size_t k = byte * 2 + upper;
          *out++ = k < n ? Widen(x[k]) : 0.0f;
        }
      }
    }
  }
  static Int Load(const std::uint8_t* p, std::size_t n) noexcept { return LoadLanes(p, n / 8); }

  template <int N, class Values>
  static void Multiply(__m256i w, const Table<Values>& table, const std::uint8_t* const (&x)[N],
                       __m256 (&acc)[N]) noexcept {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
#pragma GCC unroll 2
    for (int upper = 0; upper < 2; ++upper) {
      const __m256i which = _mm256_and_si256(upper == 0 ? w : _mm256_srli_epi32(w, 4), nibble);
      const __m256i low = _mm256_shuffle_epi8(table.low, which);
      const __m256i high = _mm256_shuffle_epi8(table.high, which);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m256i pairs =
            half == 0 ? _mm256_unpacklo_epi8(low, high) : _mm256_unpackhi_epi8(low, high);
        const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
        const __m256 second = _mm256_castsi256_ps(_mm256_and_si256(pairs, odd));
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) {
          const float* inputs = reinterpret_cast<const float*>(x[t]) + 32 * upper + 16 * half;
          const __m256 x0 = _mm256_load_ps(inputs);
          acc[t] =
              upper + half == 0 ? _mm256_mul_ps(first, x0) : _mm256_fmadd_ps(first, x0, acc[t]);
          acc[t] = _mm256_fmadd_ps(second, _mm256_load_ps(inputs + 8), acc[t]);
        }
      }
    }
  }
  static Float Scales(ScaleType type, const std::uint8_t* p, std::size_t n) noexcept {
    return LoadScales(type, p, n);
  }
  static Int SpreadIndex(int block, unsigned shift) noexcept {
    const __m256i group = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm256_srli_epi32(_mm256_add_epi32(group, _mm256_set1_epi32(block)),
                             static_cast<int>(shift));
  }
  static Float Spread(Float scales, Int index) noexcept {
    return _mm256_permutevar8x32_ps(scales, index);
  }
  static Float Zero() noexcept { return _mm256_setzero_ps(); }
  static Float Fma(Float a, Float b, Float c) noexcept { return _mm256_fmadd_ps(a, b, c); }
  static float Sum(Float v) noexcept { return SumEight(v); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateAll(activation, gate, up, n, act);
  }
};

}  // namespace
}  // namespace ktd
