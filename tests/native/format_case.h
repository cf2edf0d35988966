// Experts in every weight format together with the exact values that their bytes stand for.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "expert_layout.h"
#include "moe_reference.h"

namespace ktd::testing {

// One projection, its bytes as the format lays them out and what they mean, [rows, columns].
struct Encoded {
  std::vector<std::uint8_t> weights;
  std::vector<std::uint8_t> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<double> dense;
};

// What the tests need to know of a format; one object per format, see FormatOf.
class TestFormat {
 public:
  virtual ~TestFormat() = default;
  virtual ScaleType scale_type() const { return ScaleType::kNone; }
  virtual std::size_t group() const { return 0; }
  virtual std::size_t unit() const { return 1; }  // rows and columns are its multiples
  virtual bool column_major() const { return false; }
  virtual bool can_interleave() const { return !column_major(); }  // gate and up rows
  // Random weights of about the given size.
  virtual Encoded Encode(std::size_t rows, std::size_t columns, float scale,
                         std::mt19937& random) const = 0;
  // The values that the product multiplies: those of x, quantised where the format does that.
  virtual std::vector<double> Prepared(const Bf16* x, std::size_t columns) const;
  // How far Prepared may move when each value of x moves by `error`.
  virtual double PreparedError(const Bf16* x, std::size_t columns, double error) const;
};

// Formats with several group sizes and types of scales have a variant for each of them.
const TestFormat& FormatOf(WeightFormat format, int variant = 0);

struct CaseOptions {
  int variant = 0;  // see FormatOf
  std::size_t num_experts = 1;
  std::size_t hidden = 64;
  std::size_t intermediate = 32;
  bool interleaved = false;
  bool biased = false;
  Activation activation = {};
  float routed_scale = 1.0f;
  bool weights_before_input = false;
  std::size_t shift = 0;  // bytes that every tensor is off a cache line's boundary
};

// A layer of random experts.
class FormatCase {
 public:
  FormatCase(WeightFormat format, const CaseOptions& options, unsigned seed);

  const LayerWeights& layer() const { return layer_; }
  const TestFormat& format() const { return *format_; }

  // The exact gate and up sums, or outputs, of one expert for one row of values. `row` is x of
  // [hidden] or act of [intermediate]; router weights are left out. Each weight may be off by
  // `weight_error`, relative, for a kernel that rounds weights.
  Bounded Gate(std::size_t expert, std::size_t i, const std::vector<double>& prepared,
               double weight_error = 0) const;
  Bounded Up(std::size_t expert, std::size_t i, const std::vector<double>& prepared,
             double weight_error = 0) const;
  Bounded Down(std::size_t expert, std::size_t h, const std::vector<double>& prepared,
               double weight_error = 0) const;
  const double* down_row(std::size_t expert, std::size_t h) const {
    return experts_[expert].down.dense.data() + h * layer_.intermediate;
  }

 private:
  struct Expert {
    Encoded gate;
    Encoded up;
    Encoded down;
  };
  const std::uint8_t* Keep(const std::vector<std::uint8_t>& bytes, std::size_t shift);

  const TestFormat* format_;
  LayerWeights layer_;
  std::vector<Expert> experts_;
  std::vector<Bf16> w13_bias_;
  std::vector<Bf16> w2_bias_;
  std::vector<std::unique_ptr<Shifted>> tensors_;
};

// How a kernel keeps the activations of a group between the products.
enum class ActLayout { kRows, kTiles };
ActLayout LayoutOf(const ExpertKernel& kernel);
Bf16 ReadAct(ActLayout layout, const std::uint8_t* act, std::size_t intermediate, std::size_t pair,
             std::size_t i);
void WriteAct(ActLayout layout, std::uint8_t* act, std::size_t intermediate, std::size_t pair,
              std::size_t i, Bf16 value);

}  // namespace ktd::testing
