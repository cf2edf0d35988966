#include "moe_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "checker.h"
#include "cpu_features.h"

namespace ktd::testing {
namespace {

constexpr double kUnit = 0x1p-24;
constexpr double kTiny = 0x1p-126;
constexpr double kSiluError = 0x1p-20;  // exp within 2^-22, then an addition, a division, a product
constexpr double kSiluLost = 0x1p-121;  // of silu(-88.8), where exp overflows in float32
constexpr double kSiluSlope = 1.1;      // the largest |d silu / dx|

}  // namespace

const Kernel& KernelOrSkip(const char* name) {
  for (const Kernel& kernel : KernelTable()) {
    if (std::string_view(kernel.name) != name) continue;
    std::string missing;
    for (const std::string& feature : FeatureNames(kernel.required & ~DetectCpuFeatures())) {
      missing += " " + feature;
    }
    if (!missing.empty()) SKIP("this CPU cannot run the ", name, " kernels, it lacks", missing);
    return kernel;
  }
  throw Failure(Concat("there is no kernel called ", name));
}

double ToDouble(Bf16 value) {
  const std::uint32_t bits = std::uint32_t{value} << 16;
  float wide = 0;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

Bf16 ToBf16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<Bf16>(bits >> 16);
}

Bounded ExactDot(const Bf16* a, const Bf16* b, std::size_t n) {
  double sum = 0;
  double magnitude = 0;
  double flushed = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double x = ToDouble(a[i]);
    const double y = ToDouble(b[i]);
    sum += x * y;
    magnitude += std::abs(x * y);
    flushed += kTiny * (2 + std::abs(x) + std::abs(y));
  }
  const double terms = static_cast<double>(n) * kUnit;
  return {sum, terms / (1 - terms) * magnitude + flushed};
}

Bounded ExactActivation(const Bounded& gate, const Bounded& up) {
  const double silu = gate.value / (1 + std::exp(-gate.value));
  const double value = silu * up.value;
  const double error = kSiluSlope * gate.error * (std::abs(up.value) + up.error) +
                       std::abs(silu) * up.error +
                       kSiluError * (std::abs(value) + std::abs(silu) * up.error) +
                       kSiluLost * (std::abs(up.value) + up.error) + kTiny;
  return {value, error};
}

bool IsRounded(Bf16 act, const Bounded& exact) {
  const double largest = std::abs(exact.value) + exact.error;
  // Half a unit in the last of bf16's 8 places, at the size of the value; denormals share one.
  const double half = std::ldexp(1.0, std::max(std::ilogb(largest), -126) - 8);
  return std::abs(ToDouble(act) - exact.value) <= exact.error + half;
}

std::vector<Bf16> RandomBf16(std::mt19937& random, std::size_t n, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<Bf16> values(n);
  for (Bf16& value : values) value = ToBf16(normal(random));
  return values;
}

Shifted::Shifted(const std::vector<Bf16>& values, std::size_t shift)
    : storage_(values.size() + shift + 32) {
  const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
  start_ = storage_.data() + (64 - address % 64) % 64 / sizeof(Bf16) + shift;
  std::copy(values.begin(), values.end(), start_);
}

std::vector<std::size_t> LengthsAround(std::size_t vector) {
  return {1,          3,          vector / 2,     vector - 1,     vector,         vector + 1,
          vector + 3, 2 * vector, 2 * vector + 1, 4 * vector - 1, 5 * vector + 7, 8 * vector + 2};
}

}  // namespace ktd::testing
