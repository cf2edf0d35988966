// Every kernel, the scalar twins among them, against double precision, over lengths around the
// vector width, misalignments, tile shapes, biases and activations.
#include "test_kernels.h"

#include <cmath>

#include "checker.h"
#include "expert_run.h"
#include "format_case.h"

namespace ktd::testing {
namespace {

constexpr std::uint8_t kUntouched = 0x43;

struct Job {
  std::size_t begin;  // rows asked for
  std::size_t end;
  std::size_t count;  // pairs
};

// Each pair's token: every third pair shares its token with the one before.
std::vector<std::int32_t> TokensOf(std::size_t count) {
  std::vector<std::int32_t> tokens;
  for (std::size_t p = 0; p < count; ++p) tokens.push_back(static_cast<std::int32_t>(p - p / 3));
  return tokens;
}

// Memory of a kernel, on a cache line's boundary.
struct Buffer {
  Buffer(std::size_t bytes, std::uint8_t fill)
      : contents(bytes, fill), at(contents.data(), bytes, 0) {}
  std::vector<std::uint8_t> contents;
  Shifted at;
  std::uint8_t* data() { return const_cast<std::uint8_t*>(at.data()); }
};

std::string Text(const KernelCase& c, const LayerWeights& layer, const Job& job) {
  return Concat(c.name, ": hidden ", layer.hidden, ", intermediate ", layer.intermediate, ", rows ",
                job.begin, " to ", job.end, ", pairs ", job.count);
}

void CheckGateUp(const KernelCase& c, const ExpertKernel& kernel, const FormatCase& experts,
                 const Job& job, std::size_t shift_x, std::mt19937& random) {
  const LayerWeights& layer = experts.layer();
  const double weight_error = &kernel == c.kernel ? c.weight_error : 0;
  const Shifted x(RandomBf16(random, (job.count + 1) * layer.hidden, 1.0f), shift_x);
  const std::vector<std::int32_t> tokens = TokensOf(job.count);
  std::vector<float> scale(job.count);
  for (std::size_t p = 0; p < job.count; ++p) scale[p] = 0.25f + 0.5f * static_cast<float>(p % 5);
  const ExpertMatrices m = MatricesOf(layer, 0);
  Buffer act(kernel.act_bytes(layer.intermediate, job.count), kUntouched);
  Buffer scratch(kernel.scratch_bytes(layer.hidden, layer.intermediate), 0xff);
  GateUpJob call{};
  call.gate = m.gate;
  call.up = m.up;
  call.gate_bias = m.gate_bias;
  call.up_bias = m.up_bias;
  call.bias_step = m.bias_step;
  call.activation = layer.activation;
  call.row_begin = job.begin;
  call.row_end = job.end;
  call.x = x.bf16();
  call.tokens = tokens.data();
  call.scale = layer.weights_before_input ? scale.data() : nullptr;
  call.count = job.count;
  call.act = act.data();
  call.scratch = scratch.data();
  kernel.gate_up(call);
  const ActLayout layout = LayoutOf(kernel);
  for (std::size_t p = 0; p < job.count; ++p) {
    const std::vector<double> prepared = experts.format().Prepared(
        x.bf16() + static_cast<std::size_t>(tokens[p]) * layer.hidden, layer.hidden);
    const double factor = layer.weights_before_input ? static_cast<double>(scale[p]) : 1.0;
    for (std::size_t i = 0; i < layer.intermediate; ++i) {
      const Bf16 got = ReadAct(layout, act.data(), layer.intermediate, p, i);
      if (i < job.begin || i >= job.end) {
        EXPECT(got == (kUntouched | kUntouched << 8), Text(c, layer, job), ": wrote row ", i);
        continue;
      }
      Bounded gate = experts.Gate(0, i, prepared, weight_error);
      Bounded up = experts.Up(0, i, prepared, weight_error);
      for (Bounded* sum : {&gate, &up}) {
        sum->value *= factor;
        sum->error = sum->error * factor + 0x1p-24 * std::abs(sum->value);
      }
      const Bounded exact = ExactActivation(layer.activation, gate, up);
      EXPECT(IsRounded(got, exact), Text(c, layer, job), ": pair ", p, " row ", i, " is ",
             ToDouble(got), ", not ", exact.value, " within ", exact.error);
    }
  }
}

void CheckDown(const KernelCase& c, const ExpertKernel& kernel, const FormatCase& experts,
               const Job& job, std::mt19937& random) {
  const LayerWeights& layer = experts.layer();
  const double weight_error = &kernel == c.kernel ? c.weight_error : 0;
  const std::vector<Bf16> act = RandomBf16(random, job.count * layer.intermediate, 1.0f);
  const std::vector<std::int32_t> tokens = TokensOf(job.count);
  std::normal_distribution<float> normal;
  std::vector<float> weights(job.count);
  for (float& weight : weights) weight = normal(random);
  std::vector<float> before((job.count + 1) * layer.hidden);
  for (float& value : before) value = normal(random);
  std::vector<float> out = before;
  Buffer packed(kernel.act_bytes(layer.intermediate, job.count), 0);
  Buffer scratch(kernel.scratch_bytes(layer.hidden, layer.intermediate), 0xff);
  for (std::size_t p = 0; p < job.count; ++p) {
    for (std::size_t i = 0; i < layer.intermediate; ++i) {
      WriteAct(LayoutOf(kernel), packed.data(), layer.intermediate, p, i,
               act[p * layer.intermediate + i]);
    }
  }
  const ExpertMatrices m = MatricesOf(layer, 0);
  DownJob call{};
  call.down = m.down;
  call.bias = m.down_bias;
  call.row_begin = job.begin;
  call.row_end = job.end;
  std::vector<std::uint8_t> prepared_bytes;
  call.act = ForDown(kernel, m.down, packed.data(), job.count, prepared_bytes);
  call.tokens = tokens.data();
  call.weights = weights.data();
  call.count = job.count;
  call.out = out.data();
  call.out_stride = layer.hidden;
  call.scratch = scratch.data();
  kernel.down(call);
  std::vector<Bounded> exact(before.size());
  for (std::size_t i = 0; i < before.size(); ++i) exact[i] = {before[i], 0};
  for (std::size_t p = 0; p < job.count; ++p) {
    const std::vector<double> prepared =
        experts.format().Prepared(act.data() + p * layer.intermediate, layer.intermediate);
    const double weight = weights[p];
    for (std::size_t h = job.begin; h < job.end; ++h) {
      const Bounded dot = experts.Down(0, h, prepared, weight_error);
      Bounded& sum = exact[static_cast<std::size_t>(tokens[p]) * layer.hidden + h];
      sum.value += weight * dot.value;
      sum.error += std::abs(weight) * dot.error +
                   0x1p-24 * (2 * std::abs(weight * dot.value) + std::abs(sum.value));
    }
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t h = i % layer.hidden;
    if (h < job.begin || h >= job.end) {
      EXPECT(out[i] == before[i], Text(c, layer, job), ": wrote column ", h);
      continue;
    }
    EXPECT(std::abs(out[i] - exact[i].value) <= 1.01 * exact[i].error, Text(c, layer, job),
           ": token ", i / layer.hidden, " column ", h, " is ", out[i], ", not ", exact[i].value,
           " within ", exact[i].error);
  }
}

void CheckBoth(const KernelCase& c, CaseOptions options, std::size_t count, std::size_t shift_x,
               bool part) {
  static unsigned seed = 0;
  options.variant = c.variant;
  const FormatCase experts(c.format, options, ++seed);
  std::mt19937 random(seed);
  const std::size_t unit = c.kernel->unit;
  const std::size_t inner = options.intermediate;
  const std::size_t outer = options.hidden;
  const std::size_t from_inner = part && inner > unit ? unit : 0;
  const std::size_t from_outer = part && outer > unit ? unit : 0;
  CheckGateUp(c, *c.kernel, experts, {from_inner, inner, count}, shift_x, random);
  CheckDown(c, *c.kernel, experts, {from_outer, outer, count}, random);
}

std::size_t Fit(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

}  // namespace

// Lengths around a vector of 32 and 64, every misalignment that matters, both products.
void CheckLengths(const KernelCase& c) {
  const std::size_t unit = FormatOf(c.format, c.variant).unit();
  std::size_t last = 0;
  for (const std::size_t size : {1, 3, 15, 16, 17, 31, 32, 33, 35, 63, 64, 65, 127, 167, 258}) {
    const std::size_t length = Fit(size, unit);
    if (length == last) continue;
    last = length;
    for (const std::size_t shift : {0, 2, 34}) {
      CaseOptions options;
      options.hidden = length;
      options.intermediate = Fit(7, unit);
      options.shift = unit >= 32 ? 0 : shift;
      CheckBoth(c, options, 1, shift / 2, false);
      options.intermediate = Fit(size + 20, unit);
      CheckBoth(c, options, 3, shift / 2, true);
    }
  }
}

// Tiles of every height and width, their remainders, and more pairs and rows than a slab.
void CheckShapes(const KernelCase& c) {
  const std::size_t unit = FormatOf(c.format, c.variant).unit();
  for (const std::size_t count : {0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 15, 16, 17, 32, 33, 64, 67, 131}) {
    for (const std::size_t rows : {1, 2, 3, 4, 8, 15, 41}) {
      if (unit > 1 && rows != 1 && rows != 41) continue;
      CaseOptions options;
      options.hidden = Fit(37, unit);
      options.intermediate = Fit(rows, unit);
      CheckBoth(c, options, count, 1, false);
    }
    CaseOptions options;
    options.hidden = Fit(101, unit);
    options.intermediate = Fit(141, unit);
    CheckBoth(c, options, count, 1, true);
  }
}

// Biases, interleaved gate and up rows, router weights at the input, and every activation.
void CheckVariants(const KernelCase& c) {
  const TestFormat& format = FormatOf(c.format, c.variant);
  Activation oai;
  oai.alpha = 1.702f;
  oai.limit = 1.5f;
  oai.beta = 1.0f;
  Activation gelu;
  gelu.kind = ActivationKind::kGelu;
  Activation tanh;
  tanh.kind = ActivationKind::kGeluTanh;
  for (const Activation& activation : {Activation{}, oai, gelu, tanh}) {
    for (const bool biased : {false, true}) {
      for (const bool interleaved : {false, true}) {
        if (interleaved && !format.can_interleave()) continue;
        CaseOptions options;
        options.hidden = Fit(101, format.unit());
        options.intermediate = Fit(75, format.unit());
        options.interleaved = interleaved;
        options.biased = biased;
        options.activation = activation;
        options.weights_before_input = biased != interleaved;
        CheckBoth(c, options, 1, 0, false);
        CheckBoth(c, options, 21, 0, true);
      }
    }
  }
}

}  // namespace ktd::testing
