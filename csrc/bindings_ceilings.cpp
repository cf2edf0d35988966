// ktd.experts._native.Ceilings; daemon/ktd/experts/_native.pyi documents it.
#include "bindings_ceilings.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "ceilings/ceilings.h"
#include "check.h"
#include "cpu_features.h"
#include "topology.h"

namespace py = pybind11;

namespace ktd {
namespace {

constexpr double kLongest = 2.0;  // the GIL is released, but the call is not interrupted

std::size_t AtLeastOne(std::int64_t value, const char* name) {
  KTD_CHECK(value >= 1, name, " must be at least 1, but is ", value);
  return static_cast<std::size_t>(value);
}

void CheckSeconds(double seconds) {
  KTD_CHECK(seconds > 0 && seconds <= kLongest, "seconds must be above 0 and at most 2, not ",
            seconds);
}

std::unique_ptr<Ceilings> MakeCeilings(std::int64_t bytes, std::vector<int> cpus) {
  const std::size_t size = AtLeastOne(bytes, "bytes");
  const py::gil_scoped_release release;
  if (cpus.empty()) cpus = OnePerCore(AllowedCpus(), "/sys/devices/system/cpu");
  return std::make_unique<Ceilings>(cpus, size);
}

using RateTuple = std::tuple<double, double, double>;  // typical, mean, on core

void CheckSlice(double slice) { KTD_CHECK(slice > 0, "slice must be above 0, not ", slice); }

RateTuple ReadRate(Ceilings& ceilings, std::int64_t threads, double seconds, std::size_t ahead,
                   double slice) {
  const std::size_t count = AtLeastOne(threads, "threads");
  CheckSeconds(seconds);
  CheckSlice(slice);
  const py::gil_scoped_release release;
  const Rates rates = ceilings.ReadRate(count, seconds, ahead, slice);
  return {rates.typical, rates.mean, rates.on_core};
}

std::vector<double> ReadPasses(Ceilings& ceilings, std::int64_t threads, std::int64_t bytes,
                               double seconds, std::size_t ahead) {
  const std::size_t count = AtLeastOne(threads, "threads");
  const std::size_t size = AtLeastOne(bytes, "bytes");
  CheckSeconds(seconds);
  const py::gil_scoped_release release;
  return ceilings.ReadPasses(count, size, seconds, ahead);
}

RateTuple PeakRate(Ceilings& ceilings, const std::string& name, std::int64_t threads,
                   double seconds, double slice) {
  const std::size_t count = AtLeastOne(threads, "threads");
  CheckSeconds(seconds);
  CheckSlice(slice);
  const py::gil_scoped_release release;
  const Rates rates = ceilings.PeakRate(name, count, seconds, slice);
  return {rates.typical, rates.mean, rates.on_core};
}

double CoreHz(Ceilings& ceilings, double seconds) {
  CheckSeconds(seconds);
  const py::gil_scoped_release release;
  return ceilings.CoreHz(seconds);
}

py::list Peaks() {
  const CpuFeatures have = DetectCpuFeatures();
  py::list rows;
  for (const PeakLoop* loop : PeakLoops()) {
    py::dict row;
    row["name"] = loop->name;
    row["required"] = FeatureNames(loop->required);
    row["missing"] = FeatureNames(loop->required & ~have);
    row["supported"] = (loop->required & ~have) == 0;
    rows.append(row);
  }
  return rows;
}

}  // namespace

void BindCeilings(py::module_& module) {
  py::class_<Ceilings>(module, "Ceilings")
      .def(py::init(&MakeCeilings), py::arg("bytes"), py::arg("cpus") = std::vector<int>{})
      .def_property_readonly("threads", &Ceilings::threads)
      .def("read_rate", &ReadRate, py::arg("threads"), py::arg("seconds"), py::arg("ahead"),
           py::arg("slice"))
      .def("read_passes", &ReadPasses, py::arg("threads"), py::arg("bytes"), py::arg("seconds"),
           py::arg("ahead"))
      .def("peak_rate", &PeakRate, py::arg("name"), py::arg("threads"), py::arg("seconds"),
           py::arg("slice"))
      .def("core_hz", &CoreHz, py::arg("seconds"));
  module.def("peaks", &Peaks);
}

}  // namespace ktd
