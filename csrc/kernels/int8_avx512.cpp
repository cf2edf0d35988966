// Without VNNI: weights and activations as 16 bits, whose products are summed in pairs.
#include "avx512_quantise.h"
#include "byte_rows.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Int8Words {
  using Acc = __m512i;
  struct Weights {
    __m512i low;
    __m512i high;
  };
  static constexpr std::size_t kStep = 64;
  static constexpr std::size_t kValueBytes = 2;

  static Acc Zero() noexcept { return _mm512_setzero_si512(); }
  static Weights Load(const std::uint8_t* p) noexcept { return Decode(_mm512_loadu_si512(p)); }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    return Decode(_mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, p));
  }
  static Acc Madd(Acc acc, const Weights& w, const std::uint8_t* x) noexcept {
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(w.low, _mm512_load_si512(x)));
    return _mm512_add_epi32(acc, _mm512_madd_epi16(w.high, _mm512_load_si512(x + 64)));
  }
  static float Sum(Acc acc, const TokenScale&) noexcept {
    return static_cast<float>(_mm512_reduce_add_epi32(acc));
  }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateMasked(activation, gate, up, n, act);
  }
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    const Quantiser quantiser = Int8Quantiser(LargestBf16<false>(x, columns));
    QuantiseInt8(x, columns, quantiser.inverse, [&](std::size_t i, __m512i value) noexcept {
      _mm256_store_si256(reinterpret_cast<__m256i*>(values + i * kValueBytes),
                         _mm512_cvtepi32_epi16(value));
    });
    return {quantiser.scale, 0};
  }

 private:
  static Weights Decode(__m512i bytes) noexcept {
    return {_mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes)),
            _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(bytes, 1))};
  }
};

}  // namespace

const ExpertKernel kInt8Avx512 = GemvKernel<ByteRows<Int8Words, 1, 4, 4>>();

}  // namespace ktd
