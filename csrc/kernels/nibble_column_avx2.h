// Column-major nibbles on AVX2.
#pragma once

#include "nibble_avx2.h"
#include "nibble_column.h"

namespace ktd {
namespace {

struct Avx2Columns {
  using Int = __m256i;
  using Float = __m256;
  using Zero = __m256i;
  static constexpr std::size_t kLanes = 8;
  static constexpr int kSteps = 8;
  static constexpr int kAwqLines = 1;
  static constexpr int kGptqOne = 32;
  static constexpr int kGptqMany = 16;
  static constexpr int kGptqTokens = 4;
  static constexpr int kAwqTokens = 2;

  static Int LoadLanes(const std::uint8_t* p, std::size_t n) noexcept {
    return ktd::LoadLanes(p, n);
  }
  static Int Nibbles(const std::uint8_t* p) noexcept {
    std::int32_t eight;
    std::memcpy(&eight, p, sizeof eight);
    const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(eight), shift),
                            _mm256_set1_epi32(15));
  }
  static Int Nibble(Int packed, int i) noexcept {
    return _mm256_and_si256(_mm256_srli_epi32(packed, 4 * i), _mm256_set1_epi32(15));
  }
  static Int AddOne(Int v) noexcept { return _mm256_add_epi32(v, _mm256_set1_epi32(1)); }
  static Zero ZeroOf(Int zero) noexcept { return zero; }
  static __m256 Values(Int w, int j, Zero zero) noexcept {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(Nibble(w, j), zero));
  }
  static __m256 Madd(__m256 acc, __m256 values, const std::uint8_t* x, std::size_t i) noexcept {
    return _mm256_fmadd_ps(values, _mm256_broadcast_ss(reinterpret_cast<const float*>(x) + i), acc);
  }
  static constexpr std::size_t GptqBytes(std::size_t columns) noexcept {
    return PanelBytes(columns);
  }
  static void GptqPack(const Bf16* x, std::size_t n, std::uint8_t* packed) noexcept {
    WidenInOrder(x, n, reinterpret_cast<float*>(packed));
  }
  static constexpr std::size_t AwqBytes(std::size_t columns) noexcept {
    return PanelBytes(columns);
  }
  static void AwqPack(const Bf16* x, std::size_t n, std::uint8_t* packed) noexcept {
    WidenInOrder(x, n, reinterpret_cast<float*>(packed));
  }
  static void AwqParts(const Int (&lines)[1], Int (&parts)[1]) noexcept { parts[0] = lines[0]; }

  static Float LaneScales(ScaleType type, const std::uint8_t* p) noexcept {
    return LoadEightScales(type, p);
  }
  static Float StridedScales(ScaleType type, const std::uint8_t* p, std::size_t n) noexcept {
    alignas(32) float scales[kLanes] = {};
    for (std::size_t i = 0; i < n; ++i) scales[i] = ScaleAt(type, p, 8 * i);
    return _mm256_load_ps(scales);
  }
  static Float ZeroSums() noexcept { return _mm256_setzero_ps(); }
  static Float Fma(Float a, Float b, Float c) noexcept { return _mm256_fmadd_ps(a, b, c); }
  static void Store(float* p, Float v) noexcept { _mm256_storeu_ps(p, v); }
  static void Activate(const Activation& activation, const float* gate, const float* up,
                       std::size_t n, Bf16* act) noexcept {
    ActivateAll(activation, gate, up, n, act);
  }
};

}  // namespace
}  // namespace ktd
