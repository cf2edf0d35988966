// VNNI: vpdpbusd wants unsigned times signed bytes. The weights plus 128 are unsigned, and 128
// times the sum of the activations is taken off at the end; sums wrap around, so that is exact.
#include "avx512_quantise.h"
#include "byte_rows.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Int8Vnni {
  using Acc = __m512i;
  using Weights = __m512i;
  static constexpr std::size_t kStep = 64;
  static constexpr std::size_t kValueBytes = 1;

  static Acc Zero() noexcept { return _mm512_setzero_si512(); }
  static Weights Load(const std::uint8_t* p) noexcept {
    return _mm512_xor_si512(_mm512_loadu_si512(p), Offset());
  }
  // What lies beyond counts as 128, times activations that are zero.
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, p), Offset());
  }
  static Acc Madd(Acc acc, Weights w, const std::uint8_t* x) noexcept {
    return _mm512_dpbusd_epi32(acc, w, _mm512_load_si512(x));
  }
  static float Sum(Acc acc, const TokenScale& token) noexcept {
    const auto sum = static_cast<std::uint32_t>(_mm512_reduce_add_epi32(acc));
    const std::uint32_t offset = 128u * static_cast<std::uint32_t>(token.sum);
    return static_cast<float>(static_cast<std::int32_t>(sum - offset));
  }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateMasked(activation, gate, up, n, act);
  }
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    const Quantiser quantiser = Int8Quantiser(LargestBf16<false>(x, columns));
    __m512i sum = _mm512_setzero_si512();
    QuantiseInt8(x, columns, quantiser.inverse, [&](std::size_t i, __m512i value) noexcept {
      sum = _mm512_add_epi32(sum, value);
      _mm_store_si128(reinterpret_cast<__m128i*>(values + i), _mm512_cvtepi32_epi8(value));
    });
    return {quantiser.scale, _mm512_reduce_add_epi32(sum)};
  }

 private:
  static __m512i Offset() noexcept { return _mm512_set1_epi8(-128); }
};

}  // namespace

const ExpertKernel kInt8Avx512Bf16 = GemvKernel<ByteRows<Int8Vnni, 1, 4, 4>>();

}  // namespace ktd
