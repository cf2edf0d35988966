// AVX-VNNI: vpdpbusd wants unsigned times signed bytes. The weights plus 128 are unsigned, and 128
// times the sum of the activations is taken off at the end; sums wrap around, so that is exact.
#include "avx2_quantise.h"
#include "byte_rows.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

inline std::int32_t SumOfEight(__m256i v) noexcept {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

inline __m256i LoadUnsigned(const std::uint8_t* p) noexcept {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
}

struct Int8Vnni {
  using Acc = __m256i;
  using Weights = __m256i;
  static constexpr std::size_t kStep = 32;
  static constexpr std::size_t kValueBytes = 1;

  static Acc Zero() noexcept { return _mm256_setzero_si256(); }
  static Weights Load(const std::uint8_t* p) noexcept { return LoadUnsigned(p); }
  // What lies beyond counts as 128, times activations that are zero.
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    alignas(32) std::uint8_t padded[kStep] = {};
    for (std::size_t i = 0; i < n; ++i) padded[i] = p[i];
    return Load(padded);
  }
  static Acc Madd(Acc acc, Weights w, const std::uint8_t* x) noexcept {
    return _mm256_dpbusd_avx_epi32(acc, w, _mm256_load_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static float Sum(Acc acc, const TokenScale& token) noexcept {
    const auto sum = static_cast<std::uint32_t>(SumOfEight(acc));
    const std::uint32_t offset = 128u * static_cast<std::uint32_t>(token.sum);
    return static_cast<float>(static_cast<std::int32_t>(sum - offset));
  }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateAll(activation, gate, up, n, act);
  }
  static TokenScale Prepare(const Bf16* x, std::size_t columns, std::uint8_t* values) noexcept {
    const Quantiser quantiser = Int8Quantiser(LargestBf16<false>(x, columns));
    __m256i sum = _mm256_setzero_si256();
    QuantiseInt8(x, columns, quantiser.inverse, [&](std::size_t i, __m256i value) noexcept {
      sum = _mm256_add_epi32(sum, value);
      const __m128i words =
          _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(values + i), _mm_packs_epi16(words, words));
    });
    return {quantiser.scale, SumOfEight(sum)};
  }
};

// Two chains of sums: one row would wait for vpdpbusd's latency.
struct Int8VnniPairs : Int8Vnni {
  struct Acc {
    __m256i first;
    __m256i second;
  };
  struct Weights {
    __m256i first;
    __m256i second;
  };
  static constexpr std::size_t kStep = 64;

  static Acc Zero() noexcept { return {Int8Vnni::Zero(), Int8Vnni::Zero()}; }
  static Weights Load(const std::uint8_t* p) noexcept {
    return {LoadUnsigned(p), LoadUnsigned(p + 32)};
  }
  static Weights LoadTail(const std::uint8_t* p, std::size_t n) noexcept {
    alignas(32) std::uint8_t padded[kStep] = {};
    for (std::size_t i = 0; i < n; ++i) padded[i] = p[i];
    return Load(padded);
  }
  static Acc Madd(const Acc& acc, const Weights& w, const std::uint8_t* x) noexcept {
    return {Int8Vnni::Madd(acc.first, w.first, x), Int8Vnni::Madd(acc.second, w.second, x + 32)};
  }
  static float Sum(const Acc& acc, const TokenScale& token) noexcept {
    return Int8Vnni::Sum(_mm256_add_epi32(acc.first, acc.second), token);
  }
};

}  // namespace

const ExpertKernel kInt8Avx2Vnni = GemvKernel<ByteRows<Int8VnniPairs, 1, 1, 4>>();

const ExpertKernel kInt8Avx2VnniMany = GemvKernel<ByteRows<Int8Vnni, 1, 4, 2>>();

}  // namespace ktd
