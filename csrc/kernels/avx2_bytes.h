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

// E4M3. 32 inputs come as 0 4 8 ..., 2 6 10 ..., 1 5 9 ... and 3 7 11 ...: the order in which
// avx2_e4m3_rows.h comes to them. Prepared activations are kFactor times theirs, and their scale
// makes up for that and for what the weights are multiplied with there: 2^-120.
template <float kFactor>
struct E4m3Floats : FloatCodec {
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    const Quantiser quantiser = TokenQuantiser(LargestBf16<true>(x, columns));
    QuantiseE4m3(x, columns, quantiser.inverse, Store{values});
    return {quantiser.scale * kUnscale, 0};
  }
  static float PrepareGroup(const Bf16* x, std::size_t n, std::uint8_t* values) noexcept {
    const Quantiser quantiser = GroupQuantiser(LargestBf16<true>(x, n));
    QuantiseE4m3(x, n, quantiser.inverse, Store{values});
    return quantiser.scale * kUnscale;
  }

 private:
  static constexpr float kUnscale = kFactor == 1.0f ? 1.0f : 0x1p120f / kFactor;

  struct Store {
    std::uint8_t* values;
    void operator()(std::size_t i, __m256 value) const noexcept {
      const __m256 scaled = _mm256_mul_ps(value, _mm256_set1_ps(kFactor));
      const __m256 v = _mm256_permutevar8x32_ps(scaled, _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
      float* to = reinterpret_cast<float*>(values) + i / 32 * 32 + i % 32 / 4;
      const __m128 even = _mm256_castps256_ps128(v);
      const __m128 odd = _mm256_extractf128_ps(v, 1);
      _mm_storel_pi(reinterpret_cast<__m64*>(to), even);
      _mm_storeh_pi(reinterpret_cast<__m64*>(to + 8), even);
      _mm_storel_pi(reinterpret_cast<__m64*>(to + 16), odd);
      _mm_storeh_pi(reinterpret_cast<__m64*>(to + 24), odd);
    }
  };
};

// The values themselves, for many tokens.
struct Fp8Floats : E4m3Floats<1.0f> {
  static Weights Load(const std::uint8_t* p) noexcept { return Decode(LoadBytes(p)); }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    return Decode(LoadBytes(PaddedBytes(p, n).at));
  }

 private:
  static Weights Decode(__m256i codes) noexcept {
    const __m256i even = _mm256_maddubs_epi16(_mm256_set1_epi16(16), codes);
    const __m256i odd = _mm256_maddubs_epi16(_mm256_set1_epi16(16 << 8), codes);
    Weights w{{Value(_mm256_slli_epi32(even, 16)), Value(even), Value(_mm256_slli_epi32(odd, 16)),
               Value(odd)}};
    const __m256i nan =
        _mm256_cmpeq_epi8(_mm256_or_si256(codes, _mm256_set1_epi8(-128)), _mm256_set1_epi8(-1));
    if (_mm256_testz_si256(nan, nan) != 0) [[likely]]
      return w;
    w.at[0] = OrNan(w.at[0], _mm256_slli_epi32(nan, 24));
    w.at[1] = OrNan(w.at[1], _mm256_slli_epi32(nan, 8));
    w.at[2] = OrNan(w.at[2], _mm256_slli_epi32(nan, 16));
    w.at[3] = OrNan(w.at[3], nan);
    return w;
  }
  // Sign, exponent and mantissa in place, whose value is 2^-120 times the code's.
  static __m256 Value(__m256i bits) noexcept {
    const __m256i places = _mm256_set1_epi32(static_cast<int>(0x87f00000u));
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(bits, places)),
                         _mm256_set1_ps(0x1p120f));
  }
  // The mask's uppermost byte counts.
  static __m256 OrNan(__m256 value, __m256i mask) noexcept {
    return _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_srai_epi32(mask, 31)));
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
