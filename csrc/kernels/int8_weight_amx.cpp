// int8 weights are exact in bf16, so AMX-BF16 takes them; the row's scale comes at the end.
#include "amx_scales.h"
#include "expert_kernels.h"

namespace ktd {
namespace {

struct Lines {
  __m512i first;
  __m512i second;
};

// 16 bytes become 16 float32 whose upper halves say all.
inline __m512i HalfLine(__m128i bytes) noexcept {
  return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
}
inline __m512i Line(__m256i bytes) noexcept {
  const __m256i low =
      _mm512_cvtepi32_epi16(_mm512_srli_epi32(HalfLine(_mm256_castsi256_si128(bytes)), 16));
  const __m256i high =
      _mm512_cvtepi32_epi16(_mm512_srli_epi32(HalfLine(_mm256_extracti128_si256(bytes, 1)), 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline Lines Int8ToBf16(__m512i bytes) noexcept {
  return {Line(_mm512_castsi512_si256(bytes)), Line(_mm512_extracti64x4_epi64(bytes, 1))};
}

struct Int8WeightAmx : Bf16Tiles {
  static void Fill(const Matrix& m, std::size_t row, std::size_t rows,
                   std::uint8_t* panel) noexcept {
    FillFromBytes(m, row, rows, panel, Int8ToBf16);
  }
  static Range Stream(const Matrix& m, std::size_t row) noexcept { return StreamOf(m, row); }

  template <int BlockCount, class Beside>
  static void Multiply(const Matrix& m0, const Matrix& m1, std::size_t row0, std::size_t row1,
                       const std::uint8_t* panel0, const std::uint8_t* panel1,
                       const std::uint8_t* tokens, std::size_t token_bytes, const Beside& beside,
                       Sums (&sums)[4]) noexcept {
    Bf16Tiles::Multiply<BlockCount>(m0, m1, row0, row1, panel0, panel1, tokens, token_bytes, beside,
                                    sums);
    for (std::size_t b = 0; b < BlockCount; ++b) {
      ScaleSums(m0, row0, _mm512_set1_ps(1.0f), sums[2 * b]);
      ScaleSums(m1, row1, _mm512_set1_ps(1.0f), sums[2 * b + 1]);
    }
  }
};

}  // namespace

const ExpertKernel KTD_AMX_NAME(kInt8WeightAmx) = AmxKernel<Int8WeightAmx>();

}  // namespace ktd
