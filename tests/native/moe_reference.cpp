#include "moe_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ktd::testing {
namespace {

constexpr double kUnit = 0x1p-24;
constexpr double kScaleRoundings = 12;
constexpr double kTiny = 0x1p-126;
constexpr double kSiluError = 0x1p-20;  // exp within 2^-22, then a few float32 operations
constexpr double kSiluLost = 0x1p-121;  // of silu(-88.8), where exp overflows in float32
constexpr double kSiluSlope = 1.13;     // the largest |d activation / d gate| of all three kinds
constexpr double kErfError = 2e-7;      // of the polynomial, absolute

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double Curve(const Activation& activation, double g) {
  switch (activation.kind) {
    case ActivationKind::kGelu:
      return g * 0.5 * std::erfc(-g / std::sqrt(2.0));
    case ActivationKind::kGeluTanh:
      return g * Sigmoid(2 * std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g));
    case ActivationKind::kSwish:
      break;
  }
  return g * Sigmoid(activation.alpha * g);
}

double Clamped(double value, double low, double high) {
  return std::isnan(value) ? value : std::min(std::max(value, low), high);
}

}  // namespace

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

Bounded ExactDot(const double* a, const double* b, std::size_t n, double a_error) {
  double sum = 0;
  double magnitude = 0;
  double flushed = 0;
  for (std::size_t i = 0; i < n; ++i) {
    sum += a[i] * b[i];
    magnitude += std::abs(a[i] * b[i]);
    flushed += kTiny * (2 + std::abs(a[i]) + std::abs(b[i]));
  }
  const double terms = (static_cast<double>(n) + kScaleRoundings) * kUnit;
  return {sum, (a_error + terms / (1 - terms) * (1 + a_error)) * magnitude + flushed};
}

Bounded ExactActivation(const Activation& activation, const Bounded& gate, const Bounded& up) {
  const bool swish = activation.kind == ActivationKind::kSwish;
  const double limit = swish ? activation.limit : HUGE_VAL;
  const double beta = swish ? activation.beta : 0;
  const double curve = Curve(activation, Clamped(gate.value, -HUGE_VAL, limit));
  const double linear = Clamped(up.value, -limit, limit) + beta;
  const double value = curve * linear;
  const double slope = kSiluSlope * std::max(1.0, static_cast<double>(activation.alpha));
  const double polynomial =
      activation.kind == ActivationKind::kGelu ? kErfError * std::abs(gate.value) : 0;
  const double error = (slope * gate.error + polynomial) * (std::abs(linear) + up.error) +
                       std::abs(curve) * (up.error + kUnit * std::abs(beta)) +
                       kSiluError * (std::abs(value) + std::abs(curve) * up.error) +
                       kSiluLost * (std::abs(linear) + up.error) + kTiny;
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

Shifted::Shifted(const void* bytes, std::size_t size, std::size_t shift)
    : storage_(size + shift + 64) {
  const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
  start_ = storage_.data() + (64 - address % 64) % 64 + shift;
  if (size > 0) std::memcpy(start_, bytes, size);
}

}  // namespace ktd::testing
