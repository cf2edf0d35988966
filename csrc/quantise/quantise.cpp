#include "quantise.h"

#include <bit>
#include <cstring>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels/bf16.h"
#include "kernels/nibble.h"
#include "row_values.h"

namespace ktd {
namespace {

// Added to a number of less than 2^22, it leaves the nearest integer (ties to even) in the lowest
// bits. Integers are compared where floating point could be: such a loop becomes vectors.
constexpr float kRounder = 12582912.0f;
constexpr std::int32_t kRounderBits = 0x4b400000;
constexpr std::uint32_t kInfinity = 0x7f800000u;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The largest magnitude of n values; NaN if one is not finite. Compared as integers, which order
// magnitudes alike and put NaN above infinity.
float Largest(const float* values, std::size_t n) noexcept {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const auto bits =
        static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(values[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  const auto bits = static_cast<std::uint32_t>(largest);
  return bits >= kInfinity ? kNan : std::bit_cast<float>(bits);
}

std::int32_t Rounded(float value, std::int32_t low, std::int32_t high) noexcept {
  std::int32_t integer = std::bit_cast<std::int32_t>(value + kRounder) - kRounderBits;
  integer = integer > low ? integer : low;
  return integer < high ? integer : high;
}

void Int8Row(const float* values, std::size_t n, std::uint8_t* weights, float& scale) noexcept {
  scale = Largest(values, n) / 127.0f;
  // Nothing to divide by: the row is zero, or its scale says that it is NaN.
  if (!(scale > 0.0f)) {
    std::memset(weights, 0, n);
    return;
  }
  for (std::size_t i = 0; i < n; ++i) {
    weights[i] = static_cast<std::uint8_t>(Rounded(values[i] / scale, -127, 127));
  }
}

void Int4Group(const float* values, std::uint8_t* weights, Bf16& scale) noexcept {
  constexpr std::size_t kHalf = kQuantisedGroup / 2;
  scale = Narrow(Largest(values, kQuantisedGroup) / 7.5f);
  const float step = Widen(scale);
  if (!(step > 0.0f)) {
    std::memset(weights, 0x88, kHalf);
    return;
  }
  std::int32_t nibbles[kQuantisedGroup];
  for (std::size_t i = 0; i < kQuantisedGroup; ++i) {
    nibbles[i] = Rounded(values[i] / step, -8, 7) + 8;
  }
  for (std::size_t i = 0; i < kHalf; ++i) {
    weights[i] = static_cast<std::uint8_t>(nibbles[2 * i] | nibbles[2 * i + 1] << 4);
  }
}

void QuantiseRow(const Matrix& from, std::size_t row, WeightFormat format, const QuantisedRows& to,
                 float* values) noexcept {
  RowValues(from, row, values);
  if (format == WeightFormat::kInt8Weight) {
    Int8Row(values, from.columns, to.weights + row * from.columns,
            reinterpret_cast<float*>(to.scales)[row]);
    return;
  }
  const std::size_t groups = from.columns / kQuantisedGroup;
  Bf16* scales = reinterpret_cast<Bf16*>(to.scales) + row * groups;
  std::uint8_t* weights = to.weights + row * from.columns / 2;
  for (std::size_t g = 0; g < groups; ++g) {
    Int4Group(values + g * kQuantisedGroup, weights + g * kQuantisedGroup / 2, scales[g]);
  }
}

void DequantiseRow(const Matrix& from, std::size_t row, Bf16* to) noexcept {
  const std::uint8_t* weights = from.weights + row * from.pitch;
  const std::uint8_t* scales = from.scales + row * from.scale_pitch;
  if (from.format == WeightFormat::kInt8Weight) {
    const float scale = ScaleAt(from.scale_type, scales, 0);
    for (std::size_t k = 0; k < from.columns; ++k) {
      to[k] = Narrow(static_cast<float>(static_cast<std::int8_t>(weights[k])) * scale);
    }
    return;
  }
  for (std::size_t k = 0; k < from.columns; k += from.group) {
    const float scale = ScaleAt(from.scale_type, scales, k / from.group);
    for (std::size_t i = k; i < k + from.group; i += 2) {
      const int low = weights[i / 2] & 15;
      const int high = weights[i / 2] >> 4;
      to[i] = Narrow(static_cast<float>(low - 8) * scale);
      to[i + 1] = Narrow(static_cast<float>(high - 8) * scale);
    }
  }
}

// Calls body(thread, begin, end) for parts of [0, rows) on `threads` threads. The parts that could
// not get a thread are computed here.
template <class Body>
void OverRows(std::size_t rows, std::size_t threads, const Body& body) {
  const auto part = [&](std::size_t t) { body(t, rows * t / threads, rows * (t + 1) / threads); };
  std::vector<std::thread> others;
  others.reserve(threads);
  std::size_t started = 1;
  try {
    for (; started < threads; ++started) others.emplace_back(part, started);
  } catch (const std::system_error&) {
    for (std::size_t t = started; t < threads; ++t) part(t);
  }
  part(0);
  for (std::thread& other : others) other.join();
}

std::string_view NameOf(WeightFormat format) {
  return kFormatNames[static_cast<std::size_t>(format)];
}

}  // namespace

void Quantise(const Matrix& from, WeightFormat format, const QuantisedRows& to,
              std::size_t threads) {
  KTD_CHECK(from.format == WeightFormat::kBf16 || from.format == WeightFormat::kFp8Block ||
                from.format == WeightFormat::kFp8Channel,
            "experts in ", NameOf(from.format), " are not quantised any further");
  KTD_CHECK(format == WeightFormat::kInt8Weight || format == WeightFormat::kInt4,
            "experts are quantised to int8_weight or int4, not to ", NameOf(format));
  KTD_CHECK(format != WeightFormat::kInt4 || from.columns % kQuantisedGroup == 0,
            "int4 needs a multiple of ", kQuantisedGroup, " inputs, not ", from.columns);
  KTD_CHECK(threads > 0, "quantising needs at least one thread");
  const std::size_t columns = from.columns;
  // Allocated here, where running out of memory can still be reported.
  std::vector<float> values(threads * columns);
  OverRows(from.rows, threads, [&](std::size_t thread, std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) {
      QuantiseRow(from, row, format, to, values.data() + thread * columns);
    }
  });
}

void Dequantise(const Matrix& from, Bf16* to, std::size_t threads) {
  KTD_CHECK(from.format == WeightFormat::kInt8Weight || from.format == WeightFormat::kInt4,
            "experts in ", NameOf(from.format), " are not dequantised for a slot");
  KTD_CHECK(from.format != WeightFormat::kInt4 || from.columns % from.group == 0,
            "int4 needs a multiple of ", from.group, " inputs, not ", from.columns);
  KTD_CHECK(threads > 0, "dequantising needs at least one thread");
  OverRows(from.rows, threads, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) {
      DequantiseRow(from, row, to + row * from.columns);
    }
  });
}

}  // namespace ktd
