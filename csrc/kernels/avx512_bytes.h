// Codecs of byte_rows.h for AVX512 without special instructions: weights become float32.
#pragma once

#include "avx512_quantise.h"
#include "byte_rows.h"

namespace ktd {
namespace {

struct FloatCodec {
  using Acc = __m512;
  using Total = __m512;
  struct Weights {
    __m512 at[4];
  };
  static constexpr std::size_t kStep = 64;
  static constexpr std::size_t kValueBytes = sizeof(float);

  static Acc Zero() noexcept { return _mm512_setzero_ps(); }
  static Acc Madd(Acc acc, const Weights& w, const std::uint8_t* x) noexcept {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) acc = _mm512_fmadd_ps(w.at[i], _mm512_load_ps(x + i * 64), acc);
    return acc;
  }
  static float Sum(Acc acc, const TokenScale&) noexcept { return SumSixteen(acc); }
  static Total ZeroTotal() noexcept { return Zero(); }
  static Total Scaled(Total total, Acc acc, float factor) noexcept {
    return _mm512_fmadd_ps(acc, _mm512_set1_ps(factor), total);
  }
  static float SumTotal(Total total) noexcept { return SumSixteen(total); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateMasked(activation, gate, up, n, act);
  }
};

inline __m512i LoadBytes(const std::uint8_t* p, std::size_t n) noexcept {
  return _mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, p);
}

// E4M3. Bytes become bf16 and those the float32 values at even and at odd places, so 64 inputs come
// in the order 0 2 4 6 of every sixteen, then 1 3 5 7, 8 10 12 14, 9 11 13 15. Most weights are
// normal numbers, for which a table of sixteen upper bytes and a shift will do.
struct Fp8Floats : FloatCodec {
  static Weights Load(const std::uint8_t* p) noexcept { return Decode(_mm512_loadu_si512(p)); }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    return Decode(LoadBytes(p, n));
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
    void operator()(std::size_t i, __m512 value) const noexcept {
      const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
      const __m512 v = _mm512_permutexvar_ps(order, value);
      float* to = reinterpret_cast<float*>(values) + i / 64 * 64 + i % 64 / 4;
      _mm_store_ps(to, _mm512_castps512_ps128(v));
      _mm_store_ps(to + 16, _mm512_extractf32x4_ps(v, 1));
      _mm_store_ps(to + 32, _mm512_extractf32x4_ps(v, 2));
      _mm_store_ps(to + 48, _mm512_extractf32x4_ps(v, 3));
    }
  };

  static Weights Split(__m512i high, __m512i low) noexcept {
    const __m512i first = _mm512_unpacklo_epi8(low, high);
    const __m512i second = _mm512_unpackhi_epi8(low, high);
    const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(first, 16)),
             _mm512_castsi512_ps(_mm512_and_si512(first, odd)),
             _mm512_castsi512_ps(_mm512_slli_epi32(second, 16)),
             _mm512_castsi512_ps(_mm512_and_si512(second, odd))}};
  }
  static __m512i Look(const std::uint8_t (&table)[16], __m512i index) noexcept {
    const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), index);
  }
  static Weights Decode(__m512i codes) noexcept {
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    const __m512i above = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
    const __m512i high = Look(kE4m3Nibbles.high, above);
    const __m512i low = _mm512_and_si512(_mm512_slli_epi16(codes, 4), _mm512_set1_epi8(-16));
    // 8 to 126 without the sign are normal numbers.
    const __m512i doubled = _mm512_add_epi8(codes, codes);
    const __m512i from_normal = _mm512_sub_epi8(doubled, _mm512_set1_epi8(16));
    if (_mm512_cmpgt_epu8_mask(from_normal, _mm512_set1_epi8(static_cast<char>(236))) == 0)
        [[likely]] {
      return Split(high, low);
    }
    // Codes up to 15 by tables of their own, which hold for exponents 0 and 1; then NaN.
    const __m512i below = _mm512_and_si512(codes, nibble);
    const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8(-128));
    const __mmask64 small = _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x70));
    const __mmask64 nan = _mm512_cmpeq_epi8_mask(doubled, _mm512_set1_epi8(-2));
    __m512i all_high = _mm512_mask_mov_epi8(
        high, small, _mm512_or_si512(Look(kE4m3Nibbles.small_high, below), sign));
    __m512i all_low = _mm512_mask_mov_epi8(low, small, Look(kE4m3Nibbles.small_low, below));
    all_high = _mm512_mask_mov_epi8(all_high, nan, _mm512_set1_epi8(0x7f));
    all_low = _mm512_mask_mov_epi8(all_low, nan, _mm512_set1_epi8(-64));
    return Split(all_high, all_low);
  }
};

struct Int8Floats : FloatCodec {
  static Weights Load(const std::uint8_t* p) noexcept {
    const auto four = [&](std::size_t i) noexcept {
      const auto* bytes = reinterpret_cast<const __m128i*>(p + i * 16);
      return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)));
    };
    return {{four(0), four(1), four(2), four(3)}};
  }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    alignas(64) std::uint8_t padded[kStep];
    _mm512_store_si512(padded, LoadBytes(p, n));
    return Load(padded);
  }
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    const StoreFloats store{values};
    std::size_t i = 0;
    for (; i < columns; i += 16) store(i, WidenSixteen(LoadSixteen(x + i, columns - i)));
    for (; i % kFp8Block != 0; i += 16) store(i, _mm512_setzero_ps());
    return {1.0f, 0};
  }
};

}  // namespace
}  // namespace ktd
