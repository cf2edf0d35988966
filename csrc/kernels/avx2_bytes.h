// Codecs of byte_rows.h for AVX2 and FMA: weights become float32.
#pragma once

#include "avx2_quantise.h"
#include "byte_rows.h"

namespace ktd {
namespace {

struct FloatCodec {
  using Acc = __m256;
  using Total = __m256;
  struct Weights {
    __m256 at[4];
  };
  static constexpr std::size_t kStep = 32;
  static constexpr std::size_t kValueBytes = sizeof(float);

  static Acc Zero() noexcept { return _mm256_setzero_ps(); }
  static Acc Madd(Acc acc, const Weights& w, const std::uint8_t* x) noexcept {
    const float* values = reinterpret_cast<const float*>(x);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      acc = _mm256_fmadd_ps(w.at[i], _mm256_load_ps(values + i * 8), acc);
    }
    return acc;
  }
  static float Sum(Acc acc, const TokenScale&) noexcept { return SumEight(acc); }
  static Total ZeroTotal() noexcept { return Zero(); }
  static Total Scaled(Total total, Acc acc, float factor) noexcept {
    return _mm256_fmadd_ps(acc, _mm256_set1_ps(factor), total);
  }
  static float SumTotal(Total total) noexcept { return SumEight(total); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateAll(activation, gate, up, n, act);
  }
};

inline __m256i LoadBytes(const std::uint8_t* p) noexcept {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
// p[0..n) and zeros.
struct PaddedBytes {
  PaddedBytes(const std::uint8_t* p, std::size_t n) noexcept {
    for (std::size_t i = 0; i < n; ++i) at[i] = p[i];
  }
  alignas(32) std::uint8_t at[32] = {};
};

// E4M3. Bytes become bf16 and those the float32 values at even and at odd places, so 32 inputs come
// in the order 0 2 4 6 of both sixteens, then 1 3 5 7, 8 10 12 14, 9 11 13 15. Most weights are
// normal numbers, for which a table of sixteen upper bytes and a shift will do.
struct Fp8Floats : FloatCodec {
  static Weights Load(const std::uint8_t* p) noexcept { return Decode(LoadBytes(p)); }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    return Decode(LoadBytes(PaddedBytes(p, n).at));
  }
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    const Quantiser quantiser = TokenQuantiser(LargestBf16<true>(x, columns));
    QuantiseE4m3(x, columns, quantiser.inverse, Store{values});
    return {quantiser.scale, 0};
  }
  static float PrepareGroup(const Bf16* x, std::size_t n, std::uint8_t* values) noexcept {
    const Quantiser quantiser = GroupQuantiser(LargestBf16<true>(x, n));
    QuantiseE4m3(x, n, quantiser.inverse, Store{values});
    return quantiser.scale;
  }

 private:
  struct Store {
    std::uint8_t* values;
    void operator()(std::size_t i, __m256 value) const noexcept {
      const __m256 v = _mm256_permutevar8x32_ps(value, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
      float* to =
          reinterpret_cast<float*>(values) + i / 32 * 32 + i % 16 / 8 * 16 + i % 32 / 16 * 4;
      _mm_store_ps(to, _mm256_castps256_ps128(v));
      _mm_store_ps(to + 8, _mm256_extractf128_ps(v, 1));
    }
  };

  static Weights Split(__m256i high, __m256i low) noexcept {
    const __m256i first = _mm256_unpacklo_epi8(low, high);
    const __m256i second = _mm256_unpackhi_epi8(low, high);
    const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(first, 16)),
             _mm256_castsi256_ps(_mm256_and_si256(first, odd)),
             _mm256_castsi256_ps(_mm256_slli_epi32(second, 16)),
             _mm256_castsi256_ps(_mm256_and_si256(second, odd))}};
  }
  static __m256i Look(const std::uint8_t (&table)[16], __m256i index) noexcept {
    const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), index);
  }
  static Weights Decode(__m256i codes) noexcept {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i above = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
    const __m256i high = Look(kE4m3Nibbles.high, above);
    const __m256i low = _mm256_and_si256(_mm256_slli_epi16(codes, 4), _mm256_set1_epi8(-16));
    // 8 to 126 without the sign are normal numbers.
    const __m256i doubled = _mm256_add_epi8(codes, codes);
    const __m256i from_normal = _mm256_sub_epi8(doubled, _mm256_set1_epi8(16));
    const __m256i special = _mm256_subs_epu8(from_normal, _mm256_set1_epi8(static_cast<char>(236)));
    if (_mm256_testz_si256(special, special) != 0) [[likely]]
      return Split(high, low);
    // Codes up to 15 by tables of their own, which hold for exponents 0 and 1; then NaN.
    const __m256i below = _mm256_and_si256(codes, nibble);
    const __m256i sign = _mm256_and_si256(codes, _mm256_set1_epi8(-128));
    const __m256i small =
        _mm256_cmpeq_epi8(_mm256_and_si256(codes, _mm256_set1_epi8(0x70)), _mm256_setzero_si256());
    const __m256i nan = _mm256_cmpeq_epi8(doubled, _mm256_set1_epi8(-2));
    __m256i all_high = _mm256_blendv_epi8(
        high, _mm256_or_si256(Look(kE4m3Nibbles.small_high, below), sign), small);
    __m256i all_low = _mm256_blendv_epi8(low, Look(kE4m3Nibbles.small_low, below), small);
    all_high = _mm256_blendv_epi8(all_high, _mm256_set1_epi8(0x7f), nan);
    all_low = _mm256_blendv_epi8(all_low, _mm256_set1_epi8(-64), nan);
    return Split(all_high, all_low);
  }
};

struct Int8Floats : FloatCodec {
  static Weights Load(const std::uint8_t* p) noexcept {
    const auto eight = [&](std::size_t i) noexcept {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i * 8));
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    };
    return {{eight(0), eight(1), eight(2), eight(3)}};
  }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    return Load(PaddedBytes(p, n).at);
  }
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    float* to = reinterpret_cast<float*>(values);
    std::size_t i = 0;
    for (; i < columns; i += 8) {
      _mm256_store_ps(to + i, WidenEight(LoadEight(x + i, columns - i)));
    }
    for (; i % kFp8Block != 0; i += 8) _mm256_store_ps(to + i, _mm256_setzero_ps());
    return {1.0f, 0};
  }
};

}  // namespace
}  // namespace ktd
