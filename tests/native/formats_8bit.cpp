#include "formats_8bit.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ktd::testing {
namespace {

using Bytes = std::vector<std::uint8_t>;

void AppendFloat(Bytes& bytes, float value) {
  const std::size_t at = bytes.size();
  bytes.resize(at + sizeof value);
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

double Largest(const Bf16* x, std::size_t n) {
  double largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double magnitude = std::abs(ToDouble(x[i]));
    if (magnitude > largest) largest = magnitude;  // false for NaN
  }
  return largest;
}

// Random codes whose values are about `scale` after their own scale; one in twelve of those that
// are a format's ends.
std::uint8_t RandomE4m3(std::mt19937& random) {
  constexpr std::uint8_t kEnds[] = {0x00, 0x80, 0x01, 0x87, 0x07, 0x08, 0x88, 0x7e, 0xfe};
  std::uniform_int_distribution<int> any(0, 11);
  if (any(random) == 0) {
    return kEnds[std::uniform_int_distribution<std::size_t>(0, std::size(kEnds) - 1)(random)];
  }
  std::normal_distribution<double> normal(0, 100);
  return ToE4m3(normal(random));
}

// One scale for each row, or for each 128 x 128 block.
class Fp8Format final : public TestFormat {
 public:
  explicit Fp8Format(bool blocks) : blocks_(blocks) {}
  ScaleType scale_type() const override { return ScaleType::kFloat32; }
  bool can_interleave() const override { return !blocks_; }

  Encoded Encode(std::size_t rows, std::size_t columns, float scale,
                 std::mt19937& random) const override {
    Encoded encoded;
    const std::size_t height = blocks_ ? 128 : 1;
    const std::size_t width = blocks_ ? 128 : columns;
    const std::size_t across = (columns + width - 1) / width;
    std::vector<float> scales;
    std::uniform_real_distribution<float> spread(0.5f, 2.0f);
    for (std::size_t i = 0; i < (rows + height - 1) / height * across; ++i) {
      scales.push_back(scale / 100 * spread(random));
      AppendFloat(encoded.scales, scales.back());
    }
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t k = 0; k < columns; ++k) {
        encoded.weights.push_back(RandomE4m3(random));
        const double of = scales[r / height * across + k / width];
        encoded.dense.push_back(E4m3ToDouble(encoded.weights.back()) * of);
      }
    }
    return encoded;
  }

  std::vector<double> Prepared(const Bf16* x, std::size_t columns) const override {
    std::vector<double> values;
    const std::size_t width = blocks_ ? 128 : columns;
    for (std::size_t begin = 0; begin < columns; begin += width) {
      const std::size_t n = std::min(width, columns - begin);
      const auto largest = static_cast<float>(Largest(x + begin, n));
      const float floored = blocks_ ? std::max(largest, 1e-10f) : largest;
      const float scale = blocks_ ? floored * (1.0f / 448.0f) : floored / 448.0f;
      const float inverse = blocks_ ? 448.0f / floored : scale == 0 ? 0 : 1.0f / scale;
      for (std::size_t k = begin; k < begin + n; ++k) {
        const float scaled = static_cast<float>(ToDouble(x[k])) * inverse;
        values.push_back(E4m3ToDouble(ToE4m3(scaled)) * static_cast<double>(scale));
      }
    }
    return values;
  }

  // A value is within 2^-4 of what it stands for, or within half of 2^-9 of the scale.
  double PreparedError(const Bf16* x, std::size_t columns, double error) const override {
    return error + 2 * 0x1p-4 * (Largest(x, columns) + error);
  }

 private:
  bool blocks_;
};

class Int8Format final : public TestFormat {
 public:
  explicit Int8Format(bool quantises) : quantises_(quantises) {}
  ScaleType scale_type() const override { return ScaleType::kFloat32; }

  Encoded Encode(std::size_t rows, std::size_t columns, float scale,
                 std::mt19937& random) const override {
    Encoded encoded;
    std::uniform_real_distribution<float> spread(0.5f, 2.0f);
    std::normal_distribution<double> normal(0, 50);
    for (std::size_t r = 0; r < rows; ++r) {
      const float of = scale / 50 * spread(random);
      AppendFloat(encoded.scales, of);
      for (std::size_t k = 0; k < columns; ++k) {
        const double value = std::clamp(std::round(normal(random)), -128.0, 127.0);
        encoded.weights.push_back(static_cast<std::uint8_t>(static_cast<int>(value) & 0xff));
        encoded.dense.push_back(value * static_cast<double>(of));
      }
    }
    return encoded;
  }

  std::vector<double> Prepared(const Bf16* x, std::size_t columns) const override {
    if (!quantises_) return TestFormat::Prepared(x, columns);
    const float largest = std::max(static_cast<float>(Largest(x, columns)), 1e-10f);
    const float scale = largest / 127.0f;
    const float inverse = 127.0f / largest;
    std::vector<double> values;
    for (std::size_t k = 0; k < columns; ++k) {
      const float scaled = static_cast<float>(ToDouble(x[k])) * inverse;
      values.push_back(std::round(static_cast<double>(scaled)) * static_cast<double>(scale));
    }
    return values;
  }

  // A value is within half a step of what it stands for.
  double PreparedError(const Bf16* x, std::size_t columns, double error) const override {
    return quantises_ ? error + (Largest(x, columns) + error) / 127 : error;
  }

 private:
  bool quantises_;
};

}  // namespace

double E4m3ToDouble(std::uint8_t code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return std::nan("");
  const double magnitude =
      exponent == 0 ? mantissa * 0x1p-9 : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

std::uint8_t ToE4m3(double value) {
  if (std::isnan(value)) return 0x7f;
  const double magnitude = std::min(std::abs(value), 448.0);
  std::uint8_t best = 0;  // the largest code that is not above
  for (std::uint8_t bit = 0x40; bit != 0; bit = static_cast<std::uint8_t>(bit >> 1)) {
    const auto next = static_cast<std::uint8_t>(best | bit);
    if (next < 0x7f && E4m3ToDouble(next) <= magnitude) best = next;
  }
  if (best < 0x7e) {
    const double below = magnitude - E4m3ToDouble(best);
    const double above = E4m3ToDouble(static_cast<std::uint8_t>(best + 1)) - magnitude;
    if (above < below || (above == below && best % 2 == 1)) ++best;
  }
  return static_cast<std::uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

const TestFormat* EightBitFormat(WeightFormat format) {
  static const Fp8Format fp8_block(true);
  static const Fp8Format fp8_channel(false);
  static const Int8Format int8(true);
  static const Int8Format int8_weight(false);
  switch (format) {
    case WeightFormat::kFp8Block:
      return &fp8_block;
    case WeightFormat::kFp8Channel:
      return &fp8_channel;
    case WeightFormat::kInt8:
      return &int8;
    case WeightFormat::kInt8Weight:
      return &int8_weight;
    default:
      return nullptr;
  }
}

}  // namespace ktd::testing
