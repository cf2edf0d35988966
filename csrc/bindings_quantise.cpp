#include "bindings_quantise.h"

#include <string>

#include "check.h"
#include "quantise/quantise.h"

namespace py = pybind11;

namespace ktd {
namespace {

WeightFormat Format(const std::string& name) {
  for (std::size_t i = 0; i < kWeightFormats; ++i) {
    if (kFormatNames[i] == name) return static_cast<WeightFormat>(i);
  }
  KTD_CHECK(false, "there is no weight format '", name, "'");
  return WeightFormat::kBf16;
}

std::size_t Positive(std::int64_t value, const char* name) {
  KTD_CHECK(value > 0, name, " must be at least 1, but is ", value);
  return static_cast<std::size_t>(value);
}

template <class T>
std::uint8_t* Bytes(std::uintptr_t address, const char* name) {
  KTD_CHECK(address != 0, name, " is at address 0");
  KTD_CHECK(address % alignof(T) == 0, name, " is at an address that is no multiple of ",
            alignof(T));
  return reinterpret_cast<std::uint8_t*>(address);
}

std::uint8_t* Scales(std::uintptr_t address, WeightFormat format) {
  return format == WeightFormat::kInt4 ? Bytes<Bf16>(address, "scale")
                                       : Bytes<float>(address, "scale");
}

void QuantiseAt(std::uintptr_t source, const std::string& source_format,
                std::uintptr_t source_scale, std::int64_t rows, std::int64_t columns,
                const std::string& format, std::uintptr_t weights, std::uintptr_t scale,
                std::int64_t threads) {
  Matrix from{};
  from.format = Format(source_format);
  from.rows = Positive(rows, "rows");
  from.columns = Positive(columns, "columns");
  if (from.format == WeightFormat::kBf16) {
    from.weights = Bytes<Bf16>(source, "source");
    from.pitch = from.columns * sizeof(Bf16);
  } else {
    from.weights = Bytes<std::uint8_t>(source, "source");
    from.pitch = from.columns;
    from.scales = Bytes<float>(source_scale, "source_scale");
    from.scale_type = ScaleType::kFloat32;
    from.scale_pitch = sizeof(float);
    if (from.format == WeightFormat::kFp8Block) {
      from.scale_pitch *= (from.columns + kFp8Block - 1) / kFp8Block;
    }
  }
  const WeightFormat to = Format(format);
  const QuantisedRows out{Bytes<std::uint8_t>(weights, "weights"), Scales(scale, to)};
  const std::size_t workers = Positive(threads, "threads");
  const py::gil_scoped_release release;
  Quantise(from, to, out, workers);
}

void DequantiseAt(std::uintptr_t weights, std::uintptr_t scale, const std::string& format,
                  std::int64_t rows, std::int64_t columns, std::uintptr_t out,
                  std::int64_t threads) {
  Matrix from{};
  from.format = Format(format);
  from.rows = Positive(rows, "rows");
  from.columns = Positive(columns, "columns");
  from.weights = Bytes<std::uint8_t>(weights, "weights");
  from.scales = Scales(scale, from.format);
  if (from.format == WeightFormat::kInt4) {
    from.pitch = from.columns / 2;
    from.scale_pitch = from.columns / kQuantisedGroup * sizeof(Bf16);
    from.group = kQuantisedGroup;
    from.scale_type = ScaleType::kBf16;
  } else {
    from.pitch = from.columns;
    from.scale_pitch = sizeof(float);
    from.scale_type = ScaleType::kFloat32;
  }
  auto* to = reinterpret_cast<Bf16*>(Bytes<Bf16>(out, "out"));
  const std::size_t workers = Positive(threads, "threads");
  const py::gil_scoped_release release;
  Dequantise(from, to, workers);
}

}  // namespace

void BindQuantise(py::module_& module) {
  module.def("quantise", &QuantiseAt, py::arg("source"), py::arg("source_format"),
             py::arg("source_scale"), py::arg("rows"), py::arg("columns"), py::arg("format"),
             py::arg("weights"), py::arg("scale"), py::arg("threads") = 1);
  module.def("dequantise", &DequantiseAt, py::arg("weights"), py::arg("scale"), py::arg("format"),
             py::arg("rows"), py::arg("columns"), py::arg("out"), py::arg("threads") = 1);
}

}  // namespace ktd
