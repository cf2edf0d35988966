#include "format_case.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace ktd::testing {
namespace {

using Bytes = std::vector<std::uint8_t>;

// Both projections' lines one after the other, line by line in turn, or joined to longer lines.
Bytes Joined(const Bytes& gate, const Bytes& up, std::size_t lines, bool interleaved,
             bool column_major) {
  if (gate.empty()) return {};
  if (!interleaved && !column_major) {
    Bytes all = gate;
    all.insert(all.end(), up.begin(), up.end());
    return all;
  }
  const std::size_t line = gate.size() / lines;
  Bytes all;
  for (std::size_t l = 0; l < lines; ++l) {
    const auto at = static_cast<std::ptrdiff_t>(l * line);
    const auto end = static_cast<std::ptrdiff_t>((l + 1) * line);
    all.insert(all.end(), gate.begin() + at, gate.begin() + end);
    all.insert(all.end(), up.begin() + at, up.begin() + end);
  }
  return all;
}

void Append(Bytes& all, const Bytes& more) { all.insert(all.end(), more.begin(), more.end()); }

}  // namespace

std::vector<double> TestFormat::Prepared(const Bf16* x, std::size_t columns) const {
  std::vector<double> values(columns);
  for (std::size_t k = 0; k < columns; ++k) values[k] = ToDouble(x[k]);
  return values;
}

double TestFormat::PreparedError(const Bf16*, std::size_t, double error) const { return error; }

FormatCase::FormatCase(WeightFormat format, const CaseOptions& options, unsigned seed)
    : format_(&FormatOf(format, options.variant)) {
  std::mt19937 random(seed);
  const std::size_t h = options.hidden;
  const std::size_t i = options.intermediate;
  const float scale = 1.0f / std::sqrt(static_cast<float>(h));
  layer_.num_experts = options.num_experts;
  layer_.hidden = h;
  layer_.intermediate = i;
  layer_.format = format;
  layer_.group = format_->group();
  layer_.scale_type = format_->scale_type();
  layer_.interleaved = options.interleaved;
  layer_.activation = options.activation;
  layer_.routed_scale = options.routed_scale;
  layer_.weights_before_input = options.weights_before_input;
  Bytes w13[3];
  Bytes w2[3];
  for (std::size_t e = 0; e < options.num_experts; ++e) {
    Expert expert{format_->Encode(i, h, 2 * scale, random), format_->Encode(i, h, scale, random),
                  format_->Encode(h, i, 0.1f, random)};
    const bool cm = format_->column_major();
    const auto lines = [&](const Bytes& bytes, std::size_t row_bytes) {
      return cm ? (row_bytes == 0 ? 1 : bytes.size() / row_bytes) : i;
    };
    // Column-major lines hold all outputs: 4 bytes (GPTQ) or half a byte (AWQ, zeros) each.
    const std::size_t weight_line = format == WeightFormat::kGptq ? i * 4 : i / 2;
    const std::size_t scale_line = i * ScaleBytes(layer_.scale_type);
    Append(w13[0], Joined(expert.gate.weights, expert.up.weights,
                          lines(expert.gate.weights, weight_line), options.interleaved, cm));
    Append(w13[1], Joined(expert.gate.scales, expert.up.scales,
                          lines(expert.gate.scales, scale_line), options.interleaved, cm));
    Append(w13[2], Joined(expert.gate.zeros, expert.up.zeros, lines(expert.gate.zeros, i / 2),
                          options.interleaved, cm));
    Append(w2[0], expert.down.weights);
    Append(w2[1], expert.down.scales);
    Append(w2[2], expert.down.zeros);
    experts_.push_back(std::move(expert));
  }
  layer_.w13 = Keep(w13[0], options.shift);
  layer_.w2 = Keep(w2[0], options.shift);
  layer_.w13_scales = Keep(w13[1], 0);
  layer_.w2_scales = Keep(w2[1], 0);
  layer_.w13_zeros = Keep(w13[2], 0);
  layer_.w2_zeros = Keep(w2[2], 0);
  if (options.biased) {
    w13_bias_ = RandomBf16(random, options.num_experts * 2 * i, 0.5f);
    w2_bias_ = RandomBf16(random, options.num_experts * h, 0.5f);
    layer_.w13_bias = w13_bias_.data();
    layer_.w2_bias = w2_bias_.data();
  }
}

const std::uint8_t* FormatCase::Keep(const Bytes& bytes, std::size_t shift) {
  if (bytes.empty()) return nullptr;
  tensors_.push_back(std::make_unique<Shifted>(bytes.data(), bytes.size(), shift));
  return tensors_.back()->data();
}

namespace {

Bounded WithBias(Bounded sum, const Bf16* bias, std::size_t at) {
  if (bias == nullptr) return sum;
  sum.value += ToDouble(bias[at]);
  sum.error += 0x1p-24 * (std::abs(sum.value) + std::abs(ToDouble(bias[at])));
  return sum;
}

}  // namespace

Bounded FormatCase::Gate(std::size_t expert, std::size_t i, const std::vector<double>& prepared,
                         double weight_error) const {
  const ExpertMatrices m = MatricesOf(layer_, expert);
  return WithBias(ExactDot(experts_[expert].gate.dense.data() + i * layer_.hidden, prepared.data(),
                           layer_.hidden, weight_error),
                  m.gate_bias, i * m.bias_step);
}

Bounded FormatCase::Up(std::size_t expert, std::size_t i, const std::vector<double>& prepared,
                       double weight_error) const {
  const ExpertMatrices m = MatricesOf(layer_, expert);
  return WithBias(ExactDot(experts_[expert].up.dense.data() + i * layer_.hidden, prepared.data(),
                           layer_.hidden, weight_error),
                  m.up_bias, i * m.bias_step);
}

Bounded FormatCase::Down(std::size_t expert, std::size_t h, const std::vector<double>& prepared,
                         double weight_error) const {
  return WithBias(ExactDot(down_row(expert, h), prepared.data(), layer_.intermediate, weight_error),
                  MatricesOf(layer_, expert).down_bias, h);
}

ActLayout LayoutOf(const ExpertKernel& kernel) {
  // Tiles come in whole: one value of one token needs as many bytes as 32 of 16.
  return kernel.act_bytes(1, 1) < 1024 ? ActLayout::kRows : ActLayout::kTiles;
}

namespace {

std::size_t ActOffset(ActLayout layout, std::size_t intermediate, std::size_t pair, std::size_t i) {
  if (layout == ActLayout::kRows) return (pair * intermediate + i) * sizeof(Bf16);
  const std::size_t tiles = (intermediate + 31) / 32;
  return (pair / 16 * tiles + i / 32) * 1024 + i % 32 / 2 * 64 + pair % 16 * 4 + i % 2 * 2;
}

}  // namespace

Bf16 ReadAct(ActLayout layout, const std::uint8_t* act, std::size_t intermediate, std::size_t pair,
             std::size_t i) {
  return *reinterpret_cast<const Bf16*>(act + ActOffset(layout, intermediate, pair, i));
}

void WriteAct(ActLayout layout, std::uint8_t* act, std::size_t intermediate, std::size_t pair,
              std::size_t i, Bf16 value) {
  *reinterpret_cast<Bf16*>(act + ActOffset(layout, intermediate, pair, i)) = value;
}

}  // namespace ktd::testing
