// The 8-bit formats where every value can be named: what a code is worth, how an activation is
// quantised, and what becomes of NaN and infinity.
#include <xmmintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "expert_run.h"
#include "formats_8bit.h"
#include "kernels/expert_kernels.h"
#include "test_kernels.h"

namespace ktd::testing {
namespace {

constexpr std::size_t kSize = 256;

// A layer whose second product is [kSize, kSize] with the given weights and scales of 1.
struct Layer {
  Layer(WeightFormat format, std::vector<std::uint8_t> weights)
      : w13(2 * kSize * kSize), w2(std::move(weights)), scales(2 * kSize, 1.0f), layer() {
    layer.num_experts = 1;
    layer.hidden = kSize;
    layer.intermediate = kSize;
    layer.format = format;
    layer.scale_type = ScaleType::kFloat32;
    layer.w13 = w13.data();
    layer.w2 = w2.data();
    layer.w13_scales = layer.w2_scales = reinterpret_cast<const std::uint8_t*>(scales.data());
  }
  std::vector<std::uint8_t> w13;
  std::vector<std::uint8_t> w2;
  std::vector<float> scales;
  LayerWeights layer;
};

std::uint8_t One(WeightFormat format) {
  const bool fp8 = format == WeightFormat::kFp8Block || format == WeightFormat::kFp8Channel;
  return fp8 ? 0x38 : 1;
}

std::vector<std::uint8_t> Diagonal(WeightFormat format) {
  std::vector<std::uint8_t> weights(kSize * kSize);
  for (std::size_t i = 0; i < kSize; ++i) weights[i * kSize + i] = One(format);
  return weights;
}

// The second product of one token.
std::vector<float> Down(const ExpertKernel& kernel, const Layer& of, const std::vector<Bf16>& act) {
  const std::vector<std::uint8_t> none(kernel.act_bytes(kSize, 1));
  const Shifted packed(none.data(), none.size(), 0);
  auto* at = const_cast<std::uint8_t*>(packed.data());
  for (std::size_t i = 0; i < kSize; ++i) WriteAct(LayoutOf(kernel), at, kSize, 0, i, act[i]);
  const std::vector<std::uint8_t> bytes(kernel.scratch_bytes(kSize, kSize), 0xff);
  const Shifted scratch(bytes.data(), bytes.size(), 0);
  std::vector<float> out(kSize);
  const std::int32_t token = 0;
  const float weight = 1.0f;
  DownJob job{};
  job.down = MatricesOf(of.layer, 0).down;
  job.row_end = kSize;
  std::vector<std::uint8_t> prepared;
  job.act = ForDown(kernel, job.down, at, 1, prepared);
  job.tokens = &token;
  job.weights = &weight;
  job.count = 1;
  job.out = out.data();
  job.out_stride = kSize;
  job.scratch = const_cast<std::uint8_t*>(scratch.data());
  kernel.down(job);
  return out;
}

bool Same(float a, double b) { return std::isnan(b) ? std::isnan(a) : static_cast<double>(a) == b; }

// Every code in a column of its own, times an activation that is exact in every format.
void CheckCodes(const KernelCase& c) {
  std::vector<std::uint8_t> weights(kSize * kSize);
  for (std::size_t i = 0; i < kSize; ++i) weights[i * kSize + i] = static_cast<std::uint8_t>(i);
  const bool fp8 = One(c.format) != 1;
  const std::vector<float> out =
      Down(*c.kernel, Layer(c.format, weights), std::vector<Bf16>(kSize, ToBf16(1.0f)));
  // The largest value's code stands for 1 after its scale.
  const bool quantised = c.format != WeightFormat::kInt8Weight;
  const float most = fp8 ? 448.0f : 127.0f;
  const float scale = c.format == WeightFormat::kFp8Block ? 1.0f * (1.0f / most) : 1.0f / most;
  for (std::size_t i = 0; i < kSize; ++i) {
    const auto code = static_cast<std::uint8_t>(i);
    const double value = fp8 ? E4m3ToDouble(code) : static_cast<std::int8_t>(code);
    const double exact =
        quantised ? static_cast<double>(static_cast<float>(value * most) * scale) : value;
    // The scalar kernel scales before it multiplies: one more rounding.
    const bool near = std::abs(static_cast<double>(out[i]) - exact) <= 0x1p-22 * std::abs(exact);
    EXPECT(near || (std::isnan(out[i]) && std::isnan(exact)), c.name, ": code ", i, " is worth ",
           out[i], ", not ", exact);
  }
}

// Activations that come out of the second product as they were quantised.
void ExpectQuantised(const KernelCase& c, const std::vector<Bf16>& act, const char* what) {
  const std::vector<float> out = Down(*c.kernel, Layer(c.format, Diagonal(c.format)), act);
  const std::vector<double> exact = FormatOf(c.format).Prepared(act.data(), kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    EXPECT(Same(out[i], static_cast<float>(exact[i])), c.name, ", ", what, ": ", ToDouble(act[i]),
           " became ", out[i], ", not ", exact[i]);
  }
}

void CheckQuantiser(const KernelCase& c) {
  std::vector<Bf16> act(kSize);
  // Halves of int8's steps and of E4M3's, both signs, under a largest value that keeps them exact.
  for (const float largest : {448.0f, 127.0f, 63.5f, 1.75f}) {
    for (std::size_t i = 0; i < kSize; ++i) {
      const float step = largest / (largest == 448.0f ? 448.0f : 254.0f);
      act[i] = ToBf16((i % 2 == 0 ? 1.0f : -1.0f) * step * static_cast<float>(i));
      if (std::abs(ToDouble(act[i])) > static_cast<double>(largest)) act[i] = ToBf16(largest);
    }
    act[3] = act[200] = ToBf16(largest);
    ExpectQuantised(c, act, "halves of steps");
  }
  // Values down to E4M3's denormals and below, beside the largest.
  for (std::size_t i = 0; i < kSize; ++i) {
    act[i] = ToBf16(std::ldexp(448.0f, -static_cast<int>(i % 24)) * (i % 3 == 0 ? -1.1f : 0.9f));
  }
  act[0] = act[128] = ToBf16(448.0f);
  ExpectQuantised(c, act, "small beside large");
  ExpectQuantised(c, std::vector<Bf16>(kSize), "zeros");
  ExpectQuantised(c, std::vector<Bf16>(kSize, 0x8000), "negative zeros");
  ExpectQuantised(c, std::vector<Bf16>(kSize, ToBf16(1e-12f)), "below SGLang's floor");
  std::mt19937 random(23);
  for (const float size : {1e-3f, 1.0f, 300.0f}) {
    for (int i = 0; i < 20; ++i) ExpectQuantised(c, RandomBf16(random, kSize, size), "random");
  }
}

// A token with a NaN or an infinity gives NaN, and no infinity hides it.
void CheckNotFinite(const KernelCase& c) {
  const Layer layer(c.format, std::vector<std::uint8_t>(kSize * kSize, One(c.format)));
  for (const Bf16 bad : {Bf16{0x7fc0}, Bf16{0xff81}, Bf16{0x7f80}, Bf16{0xff80}}) {
    for (const std::size_t place : {std::size_t{0}, std::size_t{77}, kSize - 1}) {
      std::vector<Bf16> act(kSize, ToBf16(0.5f));
      act[place] = bad;
      for (const float out : Down(*c.kernel, layer, act))
        EXPECT(std::isnan(out), c.name, ": ", out);
    }
  }
}

void CheckSameBits(const char* isa, WeightFormat format) {
  const KernelCase few = CaseOrSkip(isa, format, Which::kFew);
  const KernelCase many = CaseOrSkip(isa, format, Which::kMany);
  for (const std::size_t size : {37, 128, 300, 640, 1100}) {
    CaseOptions options;
    options.hidden = size;
    options.intermediate = 141;
    const FormatCase expert(format, options, 31);
    std::mt19937 random(31);
    const std::vector<Bf16> x = RandomBf16(random, 13 * size, 1.0f);
    const Result a = RunExpert(*few.kernel, expert.layer(), x, 141, size);
    const Result b = RunExpert(*many.kernel, expert.layer(), x, 141, size);
    EXPECT(a.act == b.act, few.name, ": activations differ at ", size, " inputs");
    EXPECT(a.out == b.out, few.name, ": outputs differ at ", size, " inputs");
  }
}

// As some libraries leave a thread.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

constexpr auto kBlock = WeightFormat::kFp8Block;
constexpr auto kChannel = WeightFormat::kFp8Channel;
constexpr auto kBytes = WeightFormat::kInt8;
constexpr auto kWeight = WeightFormat::kInt8Weight;

}  // namespace

#define FOR_EACH_ISA(name, format, emulated, check)                                \
  TEST(Scalar##name) { check(CaseOrSkip("scalar", format, Which::kFew)); }         \
  TEST(Avx2##name) { check(CaseOrSkip("avx2", format, Which::kFew)); }             \
  TEST(Avx2Many##name) { check(CaseOrSkip("avx2", format, Which::kMany)); }        \
  TEST(Avx512##name) { check(CaseOrSkip("avx512", format, Which::kFew)); }         \
  TEST(Avx512Many##name) { check(CaseOrSkip("avx512", format, Which::kMany)); }    \
  TEST(Avx512Dot##name) { check(CaseOrSkip("avx512_bf16", format, Which::kFew)); } \
  TEST(Amx##name) { check(CaseOrSkip("amx", format, Which::kMany)); }              \
  TEST(EmulatedAmx##name) { check(EmulatedOrSkip(emulated, format)); }

#define VALUE_TESTS(name, format, emulated)                                   \
  FOR_EACH_ISA(name##DecodesEveryCode, format, emulated, CheckCodes)          \
  FOR_EACH_ISA(name##QuantisesAsSglangDoes, format, emulated, CheckQuantiser) \
  FOR_EACH_ISA(name##GivesNanForWhatIsNotFinite, format, emulated, CheckNotFinite)

#define VNNI_TESTS(name, which)                                                            \
  TEST(name##Int8DecodesEveryCode) { CheckCodes(CaseOrSkip("avx2_vnni", kBytes, which)); } \
  TEST(name##Int8QuantisesAsSglangDoes) {                                                  \
    CheckQuantiser(CaseOrSkip("avx2_vnni", kBytes, which));                                \
  }                                                                                        \
  TEST(name##Int8GivesNanForWhatIsNotFinite) {                                             \
    CheckNotFinite(CaseOrSkip("avx2_vnni", kBytes, which));                                \
  }

VNNI_TESTS(Avx2Vnni, Which::kFew)
VNNI_TESTS(Avx2VnniMany, Which::kMany)
TEST(Avx2VnniInt8GivesFewAndManyTheSameBits) { CheckSameBits("avx2_vnni", kBytes); }

VALUE_TESTS(Fp8Block, kBlock, kFp8BlockAmxEmulated)
VALUE_TESTS(Fp8Channel, kChannel, kFp8ChannelAmxEmulated)
VALUE_TESTS(Int8, kBytes, kInt8AmxEmulated)
FOR_EACH_ISA(Int8WeightDecodesEveryCode, kWeight, kInt8WeightAmxEmulated, CheckCodes)

#define SAME_BITS(name, format)                                                   \
  TEST(Avx2##name##GivesFewAndManyTheSameBits) { CheckSameBits("avx2", format); } \
  TEST(Avx512##name##GivesFewAndManyTheSameBits) { CheckSameBits("avx512", format); }

#define FLUSH_TESTS(name, isa, format, which)                   \
  TEST(name##DecodesEveryCodeThoughDenormalsFlush) {            \
    const KernelCase the_case = CaseOrSkip(isa, format, which); \
    const FlushDenormals flush;                                 \
    CheckCodes(the_case);                                       \
  }

FLUSH_TESTS(Avx2Fp8Block, "avx2", kBlock, Which::kFew)
FLUSH_TESTS(Avx2ManyFp8Block, "avx2", kBlock, Which::kMany)
FLUSH_TESTS(Avx2Fp8Channel, "avx2", kChannel, Which::kFew)
FLUSH_TESTS(Avx2ManyFp8Channel, "avx2", kChannel, Which::kMany)

SAME_BITS(Bf16, WeightFormat::kBf16)
SAME_BITS(Fp8Block, kBlock)
SAME_BITS(Fp8Channel, kChannel)
SAME_BITS(Int8, kBytes)
SAME_BITS(Int8Weight, kWeight)

}  // namespace ktd::testing
