// Weights and activations as 16 bits, whose products are summed in pairs: vpmaddubsw would take the
// weights as they are, but saturates.
#include "avx2_quantise.h"
#include "byte_rows.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Int8Words {
  using Acc = __m256i;
  struct Weights {
    __m256i low;
    __m256i high;
  };
  static constexpr std::size_t kStep = 32;
  static constexpr std::size_t kValueBytes = 2;

  static Acc Zero() noexcept { return _mm256_setzero_si256(); }
  static Weights Load(const std::uint8_t* p) noexcept {
    const auto* half = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(half)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(half + 1))};
  }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    alignas(32) std::uint8_t padded[kStep] = {};
    for (std::size_t i = 0; i < n; ++i) padded[i] = p[i];
    return Load(padded);
  }
  static Acc Madd(Acc acc, const Weights& w, const std::uint8_t* x) noexcept {
    const auto* values = reinterpret_cast<const __m256i*>(x);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(w.low, _mm256_load_si256(values)));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(w.high, _mm256_load_si256(values + 1)));
  }
  static float Sum(Acc acc, const TokenScale&) noexcept {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(acc), _mm256_extracti128_si256(acc, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return static_cast<float>(_mm_cvtsi128_si32(sum));
  }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateAll(activation, gate, up, n, act);
  }
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    const Quantiser quantiser = Int8Quantiser(LargestBf16<false>(x, columns));
    QuantiseInt8(x, columns, quantiser.inverse, [&](std::size_t i, __m256i value) noexcept {
      const __m128i words =
          _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
      _mm_store_si128(reinterpret_cast<__m128i*>(values + i * kValueBytes), words);
    });
    return {quantiser.scale, 0};
  }
};

}  // namespace

const ExpertKernel kInt8Avx2 = GemvKernel<ByteRows<Int8Words, 1, 4, 2>>();

}  // namespace ktd
