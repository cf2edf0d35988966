// Experts quantised at load: how far a weight moves, what becomes of values that are not ordinary,
// and that a slot's copy is what the kernels compute with.
#include <cmath>
#include <limits>

#include "checker.h"
#include "expert_run.h"
#include "kernels/expert_kernels.h"
#include "quantise/quantise.h"

namespace ktd::testing {
namespace {

constexpr std::size_t kRows = 37;
constexpr std::size_t kColumns = 288;  // two blocks of FP8 and a quarter
constexpr float kInfinite = std::numeric_limits<float>::infinity();

struct Source {
  std::vector<std::uint8_t> bytes;
  std::vector<float> scales;
  std::vector<double> values;
  Matrix matrix{};
};

Source Bf16Source(const std::vector<Bf16>& weights, std::size_t columns) {
  Source source;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(weights.data());
  source.bytes.assign(bytes, bytes + weights.size() * sizeof(Bf16));
  for (const Bf16 weight : weights) source.values.push_back(ToDouble(weight));
  source.matrix.weights = source.bytes.data();
  source.matrix.pitch = columns * sizeof(Bf16);
  source.matrix.rows = weights.size() / columns;
  source.matrix.columns = columns;
  source.matrix.format = WeightFormat::kBf16;
  return source;
}

// E4M3 by its definition: exponent bias 7, no infinity, all ones NaN.
double E4m3(unsigned code) {
  if ((code & 0x7f) == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  const int exponent = static_cast<int>(code >> 3 & 15);
  const double mantissa = code & 7;
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 0x80 ? -value : value;
}

Source Fp8Source(WeightFormat format, unsigned seed) {
  Source source;
  std::mt19937 random(seed);
  const bool blocks = format == WeightFormat::kFp8Block;
  const std::size_t across = blocks ? (kColumns + 127) / 128 : 1;
  const std::size_t lines = blocks ? (kRows + 127) / 128 : kRows;
  for (std::size_t i = 0; i < across * lines; ++i) {
    source.scales.push_back(0.001f * static_cast<float>(1 + random() % 100));
  }
  for (std::size_t i = 0; i < kRows * kColumns; ++i) {
    auto code = static_cast<std::uint8_t>(random());
    if ((code & 0x7f) == 0x7f) code = 0x7e;  // 448
    source.bytes.push_back(code);
    const std::size_t row = i / kColumns;
    const std::size_t at = blocks ? row / 128 * across + i % kColumns / 128 : row;
    source.values.push_back(E4m3(code) * static_cast<double>(source.scales[at]));
  }
  source.matrix.weights = source.bytes.data();
  source.matrix.scales = reinterpret_cast<const std::uint8_t*>(source.scales.data());
  source.matrix.pitch = kColumns;
  source.matrix.scale_pitch = across * sizeof(float);
  source.matrix.rows = kRows;
  source.matrix.columns = kColumns;
  source.matrix.scale_type = ScaleType::kFloat32;
  source.matrix.format = format;
  return source;
}

struct Copy {
  std::vector<std::uint8_t> weights;
  std::vector<std::uint8_t> scales;
  Matrix matrix{};
  std::vector<Bf16> dense;

  double Scale(std::size_t row, std::size_t column) const {
    if (matrix.format == WeightFormat::kInt4) {
      const auto* all = reinterpret_cast<const Bf16*>(scales.data());
      return ToDouble(all[(row * matrix.columns + column) / 32]);
    }
    return static_cast<double>(reinterpret_cast<const float*>(scales.data())[row]);
  }
  double Step(std::size_t row, std::size_t column) const {
    const std::size_t i = row * matrix.columns + column;
    if (matrix.format == WeightFormat::kInt4) return (weights[i / 2] >> (i % 2 * 4) & 15) - 8;
    return static_cast<std::int8_t>(weights[i]);
  }
};

Copy Quantised(const Source& source, WeightFormat format, std::size_t threads) {
  const bool int4 = format == WeightFormat::kInt4;
  const std::size_t rows = source.matrix.rows;
  const std::size_t columns = source.matrix.columns;
  Copy copy;
  copy.weights.resize(int4 ? rows * columns / 2 : rows * columns);
  copy.scales.resize(int4 ? rows * columns / 32 * 2 : rows * 4);
  Quantise(source.matrix, format, {copy.weights.data(), copy.scales.data()}, threads);
  copy.matrix.weights = copy.weights.data();
  copy.matrix.scales = copy.scales.data();
  copy.matrix.pitch = int4 ? columns / 2 : columns;
  copy.matrix.scale_pitch = int4 ? columns / 32 * 2 : 4;
  copy.matrix.rows = rows;
  copy.matrix.columns = columns;
  copy.matrix.group = int4 ? 32 : 0;
  copy.matrix.scale_type = int4 ? ScaleType::kBf16 : ScaleType::kFloat32;
  copy.matrix.format = format;
  copy.dense.resize(rows * columns);
  Dequantise(copy.matrix, copy.dense.data(), threads);
  return copy;
}

// Half a step, more where the ends of the range are: int4 reaches from -8 to 7 steps and its scale
// is rounded to bf16, which moves 7.5 by up to 7.5 / 2^8 of a step.
void CheckMoves(const Source& source, WeightFormat format) {
  const Copy copy = Quantised(source, format, 2);
  const double most = format == WeightFormat::kInt4 ? 0.5 + 7.5 * 0x1p-8 + 1e-6 : 0.5 + 1e-4;
  for (std::size_t i = 0; i < source.values.size(); ++i) {
    const std::size_t row = i / source.matrix.columns;
    const std::size_t column = i % source.matrix.columns;
    const double scale = copy.Scale(row, column);
    const double value = copy.Step(row, column) * scale;
    EXPECT(std::abs(value - source.values[i]) <= most * scale, "weight ", i, " is ", value,
           ", not ", source.values[i], "; the scale is ", scale);
    EXPECT(copy.dense[i] == ToBf16(static_cast<float>(value)), "weight ", i, " of the slot is ",
           ToDouble(copy.dense[i]), ", not ", value);
  }
}

constexpr WeightFormat kBoth[] = {WeightFormat::kInt8Weight, WeightFormat::kInt4};

// One row of which all but one value is 1.
Source RowWith(float value) {
  std::vector<Bf16> row(64, ToBf16(1.0f));
  row[40] = ToBf16(value);
  return Bf16Source(row, 64);
}

}  // namespace

TEST(QuantisedWeightsAreWithinHalfAStep) {
  std::mt19937 random(5);
  for (const WeightFormat format : kBoth) {
    for (const float size : {1e-30f, 0.02f, 1e30f}) {
      CheckMoves(Bf16Source(RandomBf16(random, kRows * kColumns, size), kColumns), format);
    }

    CheckMoves(Fp8Source(WeightFormat::kFp8Block, 6), format);

    CheckMoves(Fp8Source(WeightFormat::kFp8Channel, 7), format);
  }
}

TEST(QuantisingWithMoreThreadsChangesNothing) {
  const Source source = Fp8Source(WeightFormat::kFp8Block, 8);
  for (const WeightFormat format : kBoth) {
    const Copy one = Quantised(source, format, 1);
    for (const std::size_t threads : {2, 3, 64}) {  // 64: more than there are rows
      const Copy more = Quantised(source, format, threads);
      EXPECT(one.weights == more.weights && one.scales == more.scales && one.dense == more.dense,
             threads, " threads");
    }
  }
}

TEST(QuantisedZerosStayZero) {
  for (const WeightFormat format : kBoth) {
    for (const float zero : {0.0f, -0.0f}) {
      const Copy copy = Quantised(Bf16Source(std::vector<Bf16>(64, ToBf16(zero)), 64), format, 1);
      for (const Bf16 value : copy.dense) EXPECT(ToDouble(value) == 0, ToDouble(value));
    }
  }
}

TEST(DenormalsAreQuantisedToSomethingNoLarger) {
  for (const WeightFormat format : kBoth) {
    for (const Bf16 tiny : {Bf16{0x0001}, Bf16{0x0005}, Bf16{0x007f}, Bf16{0x8003}}) {
      const Copy copy = Quantised(Bf16Source(std::vector<Bf16>(64, tiny), 64), format, 1);
      for (const Bf16 value : copy.dense) {
        EXPECT(std::abs(ToDouble(value)) <= 1.51 * std::abs(ToDouble(tiny)), ToDouble(tiny),
               " became ", ToDouble(value));
      }
    }
  }
}

TEST(TheLargestNumbersAreQuantised) {
  for (const WeightFormat format : kBoth) {
    const Source source = Bf16Source(std::vector<Bf16>(64, 0x7f7f), 64);
    const Copy copy = Quantised(source, format, 1);
    for (std::size_t i = 0; i < 64; ++i) {
      EXPECT(std::abs(copy.Step(0, i) * copy.Scale(0, i) / source.values[i] - 1) < 0.08, i);
    }
  }
}

TEST(WhatIsNotFiniteBecomesNanUnderItsScale) {
  for (const WeightFormat format : kBoth) {
    for (const float value : {std::nanf(""), kInfinite, -kInfinite}) {
      const Copy copy = Quantised(RowWith(value), format, 1);
      for (std::size_t i = 0; i < 64; ++i) {
        const bool under = format == WeightFormat::kInt8Weight || i >= 32;
        EXPECT(std::isnan(ToDouble(copy.dense[i])) == under, "weight ", i);
      }
    }
  }
}

// What CPU and slot compute differs by the rounding of each weight to bf16 and no more.
TEST(ASlotHoldsWhatTheKernelsComputeWith) {
  std::mt19937 random(9);
  constexpr std::size_t kSize = 64;
  const Source w13 = Bf16Source(RandomBf16(random, 2 * kSize * kSize, 0.3f), kSize);
  const Source w2 = Bf16Source(RandomBf16(random, kSize * kSize, 0.3f), kSize);
  const Copy first = Quantised(w13, WeightFormat::kInt4, 1);
  const Copy second = Quantised(w2, WeightFormat::kInt4, 1);
  LayerWeights layer;
  layer.num_experts = 1;
  layer.hidden = kSize;
  layer.intermediate = kSize;
  layer.format = WeightFormat::kInt4;
  layer.group = 32;
  layer.scale_type = ScaleType::kBf16;
  layer.w13 = first.weights.data();
  layer.w2 = second.weights.data();
  layer.w13_scales = first.scales.data();
  layer.w2_scales = second.scales.data();
  LayerWeights slot;
  slot.num_experts = 1;
  slot.hidden = kSize;
  slot.intermediate = kSize;
  slot.w13 = reinterpret_cast<const std::uint8_t*>(first.dense.data());
  slot.w2 = reinterpret_cast<const std::uint8_t*>(second.dense.data());
  const std::vector<Bf16> x = RandomBf16(random, 3 * kSize, 1.0f);
  const Result cpu = RunExpert(kInt4Scalar, layer, x, kSize, kSize);
  const Result gpu = RunExpert(kBf16Scalar, slot, x, kSize, kSize);
  double largest = 0;
  for (const float out : cpu.out) largest = std::max(largest, std::abs(static_cast<double>(out)));
  for (std::size_t i = 0; i < cpu.out.size(); ++i) {
    EXPECT(std::abs(cpu.out[i] - gpu.out[i]) <= 0.03 * largest, cpu.out[i], " and ", gpu.out[i]);
  }
}

TEST(FormatsThatCannotBeQuantisedAreRefused) {
  Source source = Bf16Source(std::vector<Bf16>(40, 0), 40);
  std::uint8_t out[64];
  const auto refusal = [&](WeightFormat format) {
    return MessageOf<CheckError>([&] { Quantise(source.matrix, format, {out, out}, 1); });
  };
  EXPECT(Contains(refusal(WeightFormat::kInt4), "a multiple of 32 inputs, not 40"), "");
  EXPECT(Contains(refusal(WeightFormat::kAwq), "not to awq"), "");
  source.matrix.format = WeightFormat::kGptq;
  EXPECT(Contains(refusal(WeightFormat::kInt4), "gptq"), "");
}

}  // namespace ktd::testing
