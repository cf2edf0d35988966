// The codec of byte_rows.h for E4M3 on AVX512-BF16. E4M3 values are normal numbers in bf16, so
// nothing is lost to vdpbf16ps, which takes denormals as zero. Tokens are prepared in the order in
// which weights come out of their table, which spares a shuffle of each 64 weights.
#pragma once

#include "avx512_e4m3.h"
#include "byte_rows.h"

namespace ktd {
namespace {

struct Fp8Dot {
  struct Acc {  // two chains of additions, or one row would wait for their latency
    __m512 first;
    __m512 second;
  };
  using Weights = Bf16Pair;
  static constexpr std::size_t kStep = 64;
  static constexpr std::size_t kValueBytes = sizeof(Bf16);

  static Acc Zero() noexcept { return {_mm512_setzero_ps(), _mm512_setzero_ps()}; }
  static Weights Load(const std::uint8_t* p) noexcept { return E4m3Halves(_mm512_loadu_si512(p)); }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    return E4m3Halves(_mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, p));
  }
  static Acc Madd(Acc acc, const Weights& w, const std::uint8_t* x) noexcept {
    acc.first = _mm512_dpbf16_ps(acc.first, reinterpret_cast<__m512bh>(w.first),
                                 reinterpret_cast<__m512bh>(_mm512_load_si512(x)));
    acc.second = _mm512_dpbf16_ps(acc.second, reinterpret_cast<__m512bh>(w.second),
                                  reinterpret_cast<__m512bh>(_mm512_load_si512(x + 64)));
    return acc;
  }
  static float Sum(const Acc& acc, const TokenScale&) noexcept {
    return SumSixteen(_mm512_add_ps(acc.first, acc.second));
  }
  using Total = __m512;
  static Total ZeroTotal() noexcept { return _mm512_setzero_ps(); }
  static Total Scaled(Total total, const Acc& acc, float factor) noexcept {
    return _mm512_fmadd_ps(_mm512_add_ps(acc.first, acc.second), _mm512_set1_ps(factor), total);
  }
  static float SumTotal(Total total) noexcept { return SumSixteen(total); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateMasked(activation, gate, up, n, act);
  }
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    const Quantiser quantiser = TokenQuantiser(LargestBf16<true>(x, columns));
    QuantiseE4m3(x, columns, quantiser.inverse, StoreBf16Halves{values});
    return {quantiser.scale, 0};
  }
  static float PrepareGroup(const Bf16* x, std::size_t n, std::uint8_t* values) noexcept {
    const Quantiser quantiser = GroupQuantiser(LargestBf16<true>(x, n));
    QuantiseE4m3(x, n, quantiser.inverse, StoreBf16Halves{values});
    return quantiser.scale;
  }
};

}  // namespace
}  // namespace ktd
