// AVX2 + FMA.
#include <immintrin.h>

#include "tile.h"

namespace ktd {
namespace {

// Values 0, 2, 4, ... and 1, 3, 5, ... of 16 bf16: two operations widen all of them, where
// vpmovzxwd would need four. The order within a sum is free, as both factors share it.
struct Pairs {
  __m256 even;
  __m256 odd;
};

inline Pairs Split(__m256i values) noexcept {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(values, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(values, high))};
}

// e^x. Range reduction and polynomial of Cephes expf (relative error 2e-7). Both clamps keep NaN;
// at 89 the result overflows to infinity as it should.
inline __m256 Exp(__m256 x) noexcept {
  x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
  x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  // 2^n in two factors: n reaches 128, which one float exponent does not.
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i rest = _mm256_sub_epi32(exponent, half);
  const __m256i bias = _mm256_set1_epi32(127);
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

// Narrow() of bf16.h, eight at a time.
inline __m128i NarrowEight(__m256 value) noexcept {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd);
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

inline __m128i SiluMulEight(const float* gate, const float* up) noexcept {
  const __m256 g = _mm256_loadu_ps(gate);
  const __m256 e = Exp(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
  const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
  return NarrowEight(_mm256_mul_ps(silu, _mm256_loadu_ps(up)));
}

struct Avx2 {
  using Acc = __m256;
  using Wide = Pairs;
  static constexpr std::size_t kStep = 16;
  static constexpr int kTokens = 2;  // 4 rows x 2 tokens: 8 of 16 registers, 4 for x, 2 for w

  static Acc Zero() noexcept { return _mm256_setzero_ps(); }
  static Wide Load(const Bf16* p) noexcept {
    return Split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Wide LoadTail(const Bf16* p, std::size_t n) noexcept {
    alignas(32) Bf16 padded[kStep] = {};
    for (std::size_t i = 0; i < n; ++i) padded[i] = p[i];
    return Load(padded);
  }
  static Acc Madd(Acc acc, const Wide& w, const Wide& x) noexcept {
    return _mm256_fmadd_ps(w.odd, x.odd, _mm256_fmadd_ps(w.even, x.even, acc));
  }
  static float Sum(Acc acc) noexcept {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static void SiluMul(const float* gate, const float* up, Bf16* act, std::size_t n) noexcept {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(act + i), SiluMulEight(gate + i, up + i));
    }
    if (i == n) return;
    float g[8] = {};
    float u[8] = {};
    Bf16 narrow[8];
    for (std::size_t k = 0; i + k < n; ++k) {
      g[k] = gate[i + k];
      u[k] = up[i + k];
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(narrow), SiluMulEight(g, u));
    for (std::size_t k = 0; i + k < n; ++k) act[i + k] = narrow[k];
  }
};

}  // namespace

void GateUpAvx2(const GateUpJob& job) noexcept { GateUpTiled<Avx2>(job); }
void DownAvx2(const DownJob& job) noexcept { DownTiled<Avx2>(job); }

}  // namespace ktd
