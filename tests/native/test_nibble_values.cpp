// 4-bit experts at the ends of the range of numbers, and what CheckLayer refuses of them.
#include <cmath>
#include <cstring>

#include "expert_run.h"
#include "formats_4bit.h"
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr std::size_t kHidden = 96;
constexpr std::size_t kRows = 32;

// An expert in MXFP4, one scale for everything.
struct Mxfp4Expert {
  std::vector<std::uint8_t> w13;
  std::vector<std::uint8_t> w2;
  std::vector<std::uint8_t> w13_scales;
  std::vector<std::uint8_t> w2_scales;

  Mxfp4Expert(std::uint8_t nibbles, std::uint8_t first_scale, std::uint8_t second_scale)
      : w13(2 * kRows * kHidden / 2, nibbles),
        w2(kHidden * kRows / 2, 0x22),  // 1
        w13_scales(2 * kRows * kHidden / 32, first_scale),
        w2_scales(kHidden * kRows / 32, second_scale) {}

  LayerWeights Layer() const {
    LayerWeights layer;
    layer.num_experts = 1;
    layer.hidden = kHidden;
    layer.intermediate = kRows;
    layer.format = WeightFormat::kMxfp4;
    layer.scale_type = ScaleType::kE8m0;
    layer.w13 = w13.data();
    layer.w2 = w2.data();
    layer.w13_scales = w13_scales.data();
    layer.w2_scales = w2_scales.data();
    return layer;
  }
};

Result Run(const KernelCase& c, const Mxfp4Expert& expert, float x) {
  return RunExpert(*c.kernel, expert.Layer(), std::vector<Bf16>(kHidden, ToBf16(x)), kRows,
                   kHidden);
}

// Every one of the 16 codes, alone in a row of zeros, is the value that the standard gives it.
void CheckEveryCode(const KernelCase& c) {
  for (unsigned code = 0; code < 16; ++code) {
    for (const std::size_t column : {0, 1, 2, 3, 37, 95}) {
      Mxfp4Expert expert(0, 127, 127);
      for (std::size_t i = 0; i < kHidden; ++i) {
        std::uint8_t& byte = expert.w13[(kRows + i % kRows) * kHidden / 2 + column / 2];  // up
        byte = static_cast<std::uint8_t>(code << (column % 2 * 4));
      }
      // The gate is 64 everywhere, where silu is the identity: act = 64 * up.
      for (std::size_t i = 0; i < kRows * kHidden / 2; ++i) expert.w13[i] = 0;
      for (std::size_t i = 0; i < kRows; ++i) expert.w13[i * kHidden / 2] = 0x06;  // 4
      std::vector<Bf16> x(kHidden, ToBf16(1.0f));
      x[0] = ToBf16(16.0f);
      const double factor = column == 0 ? 16 : 1;
      const Result result = RunExpert(*c.kernel, expert.Layer(), x, kRows, kHidden);
      for (const Bf16 act : result.act) {
        EXPECT(ToDouble(act) == 64 * factor * E2m1ToDouble(code), c.name, ": code ", code,
               " in column ", column, " gave ", ToDouble(act));
      }
    }
  }
}

// 2^-127 is a denormal of float32, 2^127 its largest power of two: neither is lost in the sum of a
// kernel that scales sums, and no kernel makes NaN of it.
void CheckEndsOfScales(const KernelCase& c) {
  const Result small = Run(c, Mxfp4Expert(0x77, 0, 127), 0x1p100f);  // 6 * 2^-127 * 2^100 * 96
  for (const Bf16 act : small.act) {
    const double gate = 6 * 96 * 0x1p-27;
    const double expected = gate * gate / 2;
    EXPECT(std::abs(ToDouble(act) - expected) <= expected * 0x1p-7, c.name, ": ", ToDouble(act));
  }
  const Result large = Run(c, Mxfp4Expert(0x22, 254, 127), 0x1p-126f);  // 1 * 2^127 * 2^-126 * 96
  for (const Bf16 act : large.act) EXPECT(ToDouble(act) == 192.0 * 192.0, c.name, ToDouble(act));
  const Result nothing = Run(c, Mxfp4Expert(0x00, 254, 127), 1.0f);
  for (const Bf16 act : nothing.act) EXPECT(ToDouble(act) == 0, c.name, ToDouble(act));
}

void CheckNanScale(const KernelCase& c) {
  Mxfp4Expert expert(0x22, 127, 127);
  expert.w2_scales[5] = 255;  // of output 5
  const Result result = Run(c, expert, 0.01f);
  for (std::size_t i = 0; i < kHidden; ++i) {
    EXPECT(std::isnan(result.out[i]) == (i == 5), c.name, ": output ", i);
  }
}

// Zeros, the largest nibbles, float16's denormals, infinity and NaN as scales.
void CheckInt4Scales(const KernelCase& c) {
  struct {
    std::uint16_t half;
    double value;
  } const scales[] = {{0x0000, 0},  {0x0001, 0x1p-24}, {0x03ff, 1023 * 0x1p-24}, {0x0400, 0x1p-14},
                      {0xbc00, -1}, {0x7bff, 65504},   {0x7c00, INFINITY},       {0x7e00, NAN}};
  for (const auto& scale : scales) {
    for (const int nibbles : {0x00, 0xff, 0x88}) {
      std::vector<std::uint8_t> w13(2 * 64 * 64 / 2, 0x99);  // 1
      std::vector<std::uint8_t> w2(64 * 64 / 2, static_cast<std::uint8_t>(nibbles));
      std::vector<std::uint16_t> w13_scales(2 * 64, 0x3c00);
      const std::vector<std::uint16_t> w2_scales(64, scale.half);
      LayerWeights layer;
      layer.num_experts = 1;
      layer.hidden = 64;
      layer.intermediate = 64;
      layer.format = WeightFormat::kInt4;
      layer.group = 64;
      layer.scale_type = ScaleType::kFloat16;
      layer.w13 = w13.data();
      layer.w2 = w2.data();
      layer.w13_scales = reinterpret_cast<const std::uint8_t*>(w13_scales.data());
      layer.w2_scales = reinterpret_cast<const std::uint8_t*>(w2_scales.data());
      // gate = up = 64, act = 4096
      const Result result =
          RunExpert(*c.kernel, layer, std::vector<Bf16>(64, ToBf16(1.0f)), 64, 64);
      const double weight = ((nibbles & 15) - 8) * scale.value;
      const double expected = 64 * 4096 * weight;
      for (const float out : result.out) {
        const bool right =
            std::isnan(expected)
                ? std::isnan(out)
                : out == expected ||
                      std::abs(out - expected) <= (0x1p-20 + c.weight_error) * std::abs(expected);
        EXPECT(right, c.name, ": ", static_cast<double>(out), ", not ", expected);
      }
    }
  }
}

KernelCase Mxfp4(const char* isa) { return CaseOrSkip(isa, WeightFormat::kMxfp4, Which::kFew); }
KernelCase Int4(const char* isa) { return CaseOrSkip(isa, WeightFormat::kInt4, Which::kFew); }
KernelCase Mxfp4Emulated() { return EmulatedOrSkip(kMxfp4AmxEmulated, WeightFormat::kMxfp4); }
KernelCase Int4Emulated() {
  return EmulatedOrSkip(kInt4AmxEmulated, WeightFormat::kInt4).RoundsWeights(0x1p-8);
}

LayerWeights Plausible(WeightFormat format, std::size_t group, std::size_t size) {
  static const std::uint8_t somewhere[1] = {};
  LayerWeights layer;
  layer.num_experts = 1;
  layer.hidden = size;
  layer.intermediate = size;
  layer.format = format;
  layer.group = group;
  layer.scale_type = format == WeightFormat::kMxfp4 ? ScaleType::kE8m0 : ScaleType::kBf16;
  layer.w13 = layer.w2 = layer.w13_scales = layer.w2_scales = somewhere;
  if (ColumnMajor(format)) layer.w13_zeros = layer.w2_zeros = somewhere;
  return layer;
}

}  // namespace

#define FOR_EACH_KERNEL(test, check, kernel)              \
  TEST(Scalar##test) { check(kernel("scalar")); }         \
  TEST(Avx2##test) { check(kernel("avx2")); }             \
  TEST(Avx512##test) { check(kernel("avx512")); }         \
  TEST(Avx512Dot##test) { check(kernel("avx512_bf16")); } \
  TEST(EmulatedAmx##test) { check(kernel##Emulated()); }

FOR_EACH_KERNEL(EveryCodeOfE2m1HasItsValue, CheckEveryCode, Mxfp4)
FOR_EACH_KERNEL(TheEndsOfE8m0AreKept, CheckEndsOfScales, Mxfp4)
FOR_EACH_KERNEL(ANanScaleStaysWithItsOutput, CheckNanScale, Mxfp4)
FOR_EACH_KERNEL(ScalesOfAllKindsAreRight, CheckInt4Scales, Int4)

TEST(GroupsThatNoKernelComputesAreRefused) {
  for (const WeightFormat format : {WeightFormat::kInt4, WeightFormat::kGptq, WeightFormat::kAwq}) {
    for (const std::size_t group : {0, 16, 48, 96, 256}) {
      const std::string message =
          MessageOf<CheckError>([&] { CheckLayer(Plausible(format, group, 768)); });
      EXPECT(Contains(message, Concat("groups of ", group)), message);
    }
    CheckLayer(Plausible(format, 64, 768));
    EXPECT(Contains(MessageOf<CheckError>([&] { CheckLayer(Plausible(format, 128, 64)); }),
                    "need a multiple of 128"),
           "");
  }
  CheckLayer(Plausible(WeightFormat::kMxfp4, 0, 96));
  EXPECT(Contains(MessageOf<CheckError>([] { CheckLayer(Plausible(WeightFormat::kMxfp4, 0, 80)); }),
                  "need a multiple of 32"),
         "");
}

}  // namespace ktd::testing
