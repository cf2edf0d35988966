#include "expert_layout.h"

#include <algorithm>
#include <string>

#include "check.h"

namespace ktd {
namespace {

constexpr std::size_t Blocks(std::size_t n, std::size_t block) { return (n + block - 1) / block; }

// One tensor of a layer, as an expert's projection sees it: lines `pitch` bytes apart.
struct Plane {
  std::size_t pitch = 0;  // bytes from one line to the next
  std::size_t lines = 0;  // of one expert, all its projections together
  std::size_t step = 0;   // bytes from one projection's first line, or output, to the next one's

  std::size_t expert_bytes() const { return pitch * lines; }
};

// `parts` projections of [rows, columns] each (w13: 2, w2: 1).
struct Planes {
  Plane weights;
  Plane scales;
  Plane zeros;
};

Plane Rows(std::size_t pitch, std::size_t rows, std::size_t parts) {
  return {pitch, rows * parts, rows * pitch};
}

Plane Columns(std::size_t line_bytes, std::size_t lines, std::size_t parts) {
  return {line_bytes * parts, lines, line_bytes};
}

Planes PlanesOf(const LayerWeights& layer, std::size_t rows, std::size_t columns,
                std::size_t parts) {
  const std::size_t scale = ScaleBytes(layer.scale_type);
  switch (layer.format) {
    case WeightFormat::kBf16:
      return {Rows(columns * sizeof(Bf16), rows, parts), {}, {}};
    case WeightFormat::kFp8Block: {
      const std::size_t blocks = Blocks(rows, kFp8Block);
      return {
          Rows(columns, rows, parts), Rows(Blocks(columns, kFp8Block) * scale, blocks, parts), {}};
    }
    case WeightFormat::kFp8Channel:
    case WeightFormat::kInt8:
    case WeightFormat::kInt8Weight:
      return {Rows(columns, rows, parts), Rows(scale, rows, parts), {}};
    case WeightFormat::kInt4:
      return {Rows(columns / 2, rows, parts), Rows(columns / layer.group * scale, rows, parts), {}};
    case WeightFormat::kMxfp4:
      return {Rows(columns / 2, rows, parts), Rows(columns / kMxfp4Group, rows, parts), {}};
    case WeightFormat::kGptq:
      return {Columns(rows * 4, columns / 8, parts),
              Columns(rows * scale, columns / layer.group, parts),
              Columns(rows / 2, columns / layer.group, parts)};
    case WeightFormat::kAwq:
      return {Columns(rows / 2, columns, parts),
              Columns(rows * scale, columns / layer.group, parts),
              Columns(rows / 2, columns / layer.group, parts)};
  }
  return {};
}

const std::uint8_t* At(const std::uint8_t* base, std::size_t offset) noexcept {
  return base == nullptr ? nullptr : base + offset;
}

// The weights, scales and zero points of a layer's first or second product.
struct Tensors {
  const std::uint8_t* weights;
  const std::uint8_t* scales;
  const std::uint8_t* zeros;
  const Scattered& scattered;
  std::size_t parts;  // projections of an expert
};

Matrix Projection(const LayerWeights& layer, const Tensors& tensors, const Planes& planes,
                  std::size_t expert, std::size_t part, std::size_t rows, std::size_t columns) {
  const bool interleaved = layer.interleaved && planes.weights.lines == 2 * rows;
  const auto lines = [&](const std::uint8_t* base, const Plane& plane,
                         const std::vector<Lines>& scattered) {
    if (!scattered.empty()) return scattered[expert * tensors.parts + part];
    const std::size_t step = interleaved ? plane.pitch : plane.step;
    return Lines{At(base, expert * plane.expert_bytes() + part * step),
                 plane.pitch * (interleaved ? 2 : 1)};
  };
  const Lines weights = lines(tensors.weights, planes.weights, tensors.scattered.weights);
  const Lines scales = lines(tensors.scales, planes.scales, tensors.scattered.scales);
  const Lines zeros = lines(tensors.zeros, planes.zeros, tensors.scattered.zeros);
  return {weights.start,
          scales.start,
          zeros.start,
          weights.pitch,
          scales.pitch,
          zeros.pitch,
          rows,
          columns,
          layer.format == WeightFormat::kMxfp4 ? kMxfp4Group : layer.group,
          layer.scale_type,
          layer.format};
}

Planes FirstPlanes(const LayerWeights& layer) {
  return PlanesOf(layer, layer.intermediate, layer.hidden, 2);
}

Planes SecondPlanes(const LayerWeights& layer) {
  return PlanesOf(layer, layer.hidden, layer.intermediate, 1);
}

void CheckMultiple(std::size_t value, std::size_t of, const char* what, WeightFormat format) {
  KTD_CHECK(of > 0 && value % of == 0, "the ", what, " size is ", value, ", but experts in ",
            kFormatNames[static_cast<std::size_t>(format)], " need a multiple of ", of);
}

// Whether a layer has a tensor, in one piece or in as many as there are projections.
bool Present(const std::uint8_t* tensor, const std::vector<Lines>& lines, std::size_t projections,
             const char* what) {
  if (lines.empty()) return tensor != nullptr;
  KTD_CHECK(tensor == nullptr, "a layer's ", what, " are in one tensor or scattered, not both");
  KTD_CHECK(lines.size() == projections, "a layer's scattered ", what, " are of ", projections,
            " projections, not of ", lines.size());
  for (const Lines& projection : lines) {
    KTD_CHECK(projection.start != nullptr && projection.pitch > 0, "a layer's scattered ", what,
              " are at address 0, or their lines are");
  }
  return true;
}

}  // namespace

void CheckLayer(const LayerWeights& layer) {
  KTD_CHECK(layer.num_experts > 0 && layer.hidden > 0 && layer.intermediate > 0,
            "a layer needs experts, a hidden and an intermediate size of at least 1, not ",
            layer.num_experts, ", ", layer.hidden, " and ", layer.intermediate);
  const auto present = [&](const std::uint8_t* first, const std::uint8_t* second,
                           std::vector<Lines> Scattered::* lines, const char* what) {
    const bool w13 = Present(first, layer.w13_scattered.*lines, 2 * layer.num_experts, what);
    return Present(second, layer.w2_scattered.*lines, layer.num_experts, what) && w13;
  };
  KTD_CHECK(present(layer.w13, layer.w2, &Scattered::weights, "weights"),
            "a layer's weights are at address 0");
  const std::string_view name = kFormatNames[static_cast<std::size_t>(layer.format)];
  const bool scaled = layer.format != WeightFormat::kBf16;
  KTD_CHECK(scaled == (layer.scale_type != ScaleType::kNone) &&
                scaled == present(layer.w13_scales, layer.w2_scales, &Scattered::scales, "scales"),
            "experts in ", name, scaled ? " need scales" : " have no scales");
  const bool zeros = ColumnMajor(layer.format);
  KTD_CHECK(zeros == present(layer.w13_zeros, layer.w2_zeros, &Scattered::zeros, "zero points"),
            "experts in ", name, zeros ? " need zero points" : " have no zero points");
  KTD_CHECK(!layer.interleaved || !(zeros || layer.format == WeightFormat::kFp8Block),
            "experts in ", name, " cannot have interleaved rows");
  std::size_t unit = 1;
  if (layer.format == WeightFormat::kMxfp4) unit = kMxfp4Group;
  if (layer.format == WeightFormat::kInt4 || zeros) {
    KTD_CHECK(layer.group == 32 || layer.group == 64 || layer.group == 128, "experts in ", name,
              " with groups of ", layer.group,
              " inputs are not computed: groups must be of 32, 64 or 128");
    unit = layer.group;
  }
  // Sums of products of int8 stay within int32.
  constexpr std::size_t most = std::size_t{1} << 17;
  KTD_CHECK(
      layer.format != WeightFormat::kInt8 || std::max(layer.hidden, layer.intermediate) <= most,
      "experts in ", name, " take sizes up to ", most, ", not ", layer.hidden, " and ",
      layer.intermediate);
  CheckMultiple(layer.hidden, unit, "hidden", layer.format);
  CheckMultiple(layer.intermediate, unit, "intermediate", layer.format);
  const bool four_byte =
      layer.format == WeightFormat::kFp8Block || layer.format == WeightFormat::kFp8Channel ||
      layer.format == WeightFormat::kInt8 || layer.format == WeightFormat::kInt8Weight;
  KTD_CHECK(!four_byte || layer.scale_type == ScaleType::kFloat32, "experts in ", name,
            " need float32 scales");
  KTD_CHECK((layer.format == WeightFormat::kMxfp4) == (layer.scale_type == ScaleType::kE8m0),
            "mxfp4 has E8M0 scales, and no other format has; these are experts in ", name);
}

ExpertMatrices MatricesOf(const LayerWeights& layer, std::size_t expert) noexcept {
  const std::size_t i = layer.intermediate;
  const std::size_t h = layer.hidden;
  const Planes first = FirstPlanes(layer);
  const Planes second = SecondPlanes(layer);
  const Tensors w13{layer.w13, layer.w13_scales, layer.w13_zeros, layer.w13_scattered, 2};
  const Tensors w2{layer.w2, layer.w2_scales, layer.w2_zeros, layer.w2_scattered, 1};
  const Bf16* bias = layer.w13_bias == nullptr ? nullptr : layer.w13_bias + expert * 2 * i;
  const std::size_t up_bias = layer.interleaved ? 1 : i;
  return {Projection(layer, w13, first, expert, 0, i, h),
          Projection(layer, w13, first, expert, 1, i, h),
          Projection(layer, w2, second, expert, 0, h, i),
          bias,
          bias == nullptr ? nullptr : bias + up_bias,
          layer.interleaved ? std::size_t{2} : std::size_t{1},
          layer.w2_bias == nullptr ? nullptr : layer.w2_bias + expert * h};
}

std::uint64_t ExpertBytes(const LayerWeights& layer) noexcept {
  std::uint64_t bytes = 0;
  for (const Planes& planes : {FirstPlanes(layer), SecondPlanes(layer)}) {
    bytes +=
        planes.weights.expert_bytes() + planes.scales.expert_bytes() + planes.zeros.expert_bytes();
  }
  if (layer.w13_bias != nullptr) bytes += 2 * layer.intermediate * sizeof(Bf16);
  if (layer.w2_bias != nullptr) bytes += layer.hidden * sizeof(Bf16);
  return bytes;
}

}  // namespace ktd
