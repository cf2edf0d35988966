#include "formats_4bit.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace ktd::testing {
namespace {

struct Variant {
  std::size_t group;
  ScaleType scale_type;
};
constexpr Variant kVariants[] = {
    {32, ScaleType::kBf16}, {64, ScaleType::kFloat16}, {128, ScaleType::kFloat32}};

void PutNibble(std::vector<std::uint8_t>& bytes, std::size_t i, unsigned nibble) {
  bytes[i / 2] = static_cast<std::uint8_t>(bytes[i / 2] | nibble << (i % 2 * 4));
}

// A scale of about the given size in the given type: its bytes and its value.
double PutScale(std::vector<std::uint8_t>& bytes, ScaleType type, float about) {
  const auto put = [&](const auto& value) {
    const auto* from = reinterpret_cast<const std::uint8_t*>(&value);
    bytes.insert(bytes.end(), from, from + sizeof value);
  };
  if (type == ScaleType::kBf16) {
    const Bf16 narrow = ToBf16(about);
    put(narrow);
    return ToDouble(narrow);
  }
  if (type == ScaleType::kFloat32) {
    put(about);
    return static_cast<double>(about);
  }
  // float16: eleven bits of mantissa from a normal value.
  int exponent = 0;
  const double mantissa = std::frexp(std::abs(static_cast<double>(about)), &exponent);
  const double value = std::ldexp(std::floor(mantissa * 2048), exponent - 11);
  const auto fraction = static_cast<unsigned>(std::floor(mantissa * 2048)) - 1024;
  const auto sign = about < 0 ? 0x8000u : 0u;
  put(static_cast<std::uint16_t>(sign | static_cast<unsigned>(exponent + 14) << 10 | fraction));
  return about < 0 ? -value : value;
}

class RowFormat : public TestFormat {
 public:
  RowFormat(bool e2m1, Variant variant) : e2m1_(e2m1), variant_(variant) {}
  ScaleType scale_type() const override { return variant_.scale_type; }
  std::size_t group() const override { return variant_.group; }
  std::size_t unit() const override { return variant_.group; }

  Encoded Encode(std::size_t rows, std::size_t columns, float scale,
                 std::mt19937& random) const override {
    std::uniform_int_distribution<unsigned> nibble(0, 15);
    std::normal_distribution<float> normal;
    Encoded encoded;
    encoded.weights.resize(rows * columns / 2);
    double group_scale = 0;
    for (std::size_t i = 0; i < rows * columns; ++i) {
      if (i % variant_.group == 0) {
        const float about = scale / 4 * std::exp(normal(random));
        if (e2m1_) {
          const auto code = static_cast<std::uint8_t>(127 + std::ilogb(about));
          encoded.scales.push_back(code);
          group_scale = E8m0ToDouble(code);
        } else {
          group_scale = PutScale(encoded.scales, variant_.scale_type, about);
        }
      }
      const unsigned code = nibble(random);
      PutNibble(encoded.weights, i, code);
      encoded.dense.push_back(group_scale *
                              (e2m1_ ? E2m1ToDouble(code) : static_cast<double>(code) - 8));
    }
    return encoded;
  }

 private:
  bool e2m1_;
  Variant variant_;
};

class ColumnFormat : public TestFormat {
 public:
  ColumnFormat(bool awq, Variant variant) : awq_(awq), variant_(variant) {}
  ScaleType scale_type() const override { return variant_.scale_type; }
  std::size_t group() const override { return variant_.group; }
  std::size_t unit() const override { return variant_.group; }
  bool column_major() const override { return true; }

  Encoded Encode(std::size_t rows, std::size_t columns, float scale,
                 std::mt19937& random) const override {
    std::uniform_int_distribution<unsigned> nibble(0, 15);
    std::normal_distribution<float> normal;
    Encoded encoded;
    encoded.weights.resize(rows * columns / 2);
    encoded.zeros.resize(rows * (columns / variant_.group) / 2);
    encoded.dense.resize(rows * columns);
    std::vector<double> scales(rows);
    std::vector<double> zeros(rows);
    for (std::size_t k = 0; k < columns; ++k) {
      for (std::size_t n = 0; n < rows; ++n) {
        if (k % variant_.group == 0) {
          const float about = scale / 4 * std::exp(normal(random));
          scales[n] = PutScale(encoded.scales, variant_.scale_type, about);
          const unsigned stored = nibble(random);
          zeros[n] = stored + (awq_ ? 0 : 1);
          PutNibble(encoded.zeros, k / variant_.group * rows + Place(n), stored);
        }
        const unsigned code = nibble(random);
        const std::size_t at = awq_ ? k * rows + Place(n) : (k / 8 * rows + n) * 8 + k % 8;
        PutNibble(encoded.weights, at, code);
        encoded.dense[n * columns + k] = (code - zeros[n]) * scales[n];
      }
    }
    return encoded;
  }

 private:
  // AutoAWQ packs output order[i] of eight into nibble i (awq/utils/packing_utils.py).
  std::size_t Place(std::size_t n) const {
    constexpr std::size_t kOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};
    if (!awq_) return n;
    for (std::size_t i = 0; i < 8; ++i) {
      if (kOrder[i] == n % 8) return n / 8 * 8 + i;
    }
    return n;
  }

  bool awq_;
  Variant variant_;
};

}  // namespace

double E2m1ToDouble(unsigned code) {
  const double mantissa = code & 1;
  const int exponent = static_cast<int>(code >> 1 & 3);
  const double value = exponent == 0 ? mantissa / 2 : std::ldexp(1 + mantissa / 2, exponent - 1);
  return code & 8 ? -value : value;
}

double E8m0ToDouble(std::uint8_t code) {
  return code == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(1.0, code - 127);
}

const TestFormat* FourBitFormat(WeightFormat format, int variant) {
  static const RowFormat int4[] = {
      {false, kVariants[0]}, {false, kVariants[1]}, {false, kVariants[2]}};
  static const RowFormat mxfp4(true, {32, ScaleType::kE8m0});
  static const ColumnFormat gptq[] = {
      {false, kVariants[0]}, {false, kVariants[1]}, {false, kVariants[2]}};
  static const ColumnFormat awq[] = {
      {true, kVariants[0]}, {true, kVariants[1]}, {true, kVariants[2]}};
  switch (format) {
    case WeightFormat::kInt4:
      return &int4[variant];
    case WeightFormat::kMxfp4:
      return &mxfp4;
    case WeightFormat::kGptq:
      return &gptq[variant];
    case WeightFormat::kAwq:
      return &awq[variant];
    default:
      return nullptr;
  }
}

}  // namespace ktd::testing
