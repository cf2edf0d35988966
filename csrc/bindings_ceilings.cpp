// ktd.experts._native.Ceilings; daemon/ktd/experts/_native.pyi documents it.
#include "bindings_ceilings.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "ceilings/ceilings.h"
#include "check.h"
#include "cpu_features.h"
#include "topology.h"

namespace py = pybind11;

namespace ktd {
namespace {

constexpr double kLongest = 60.0;  // the GIL is released, but the call is not interrupted

std::size_t AtLeastOne(std::int64_t value, const char* name) {
  KTD_CHECK(value >= 1, name, " must be at least 1, but is ", value);
  return static_cast<std::size_t>(value);
}

void CheckSeconds(double seconds) {
  KTD_CHECK(seconds > 0 && seconds <= kLongest, "seconds must be above 0 and at most 60, not ",
            seconds);
}

std::unique_ptr<Ceilings> MakeCeilings(std::int64_t bytes, std::vector<int> cpus) {
  const std::size_t size = AtLeastOne(bytes, "bytes");
  const py::gil_scoped_release release;
  if (cpus.empty()) cpus = OnePerCore(AllowedCpus(), "/sys/devices/system/cpu");
  return std::make_unique<Ceilings>(cpus, size);
}

double ReadRate(Ceilings& ceilings, std::int64_t threads, double seconds, std::size_t ahead) {
  const std::size_t count = AtLeastOne(threads, "threads");
  CheckSeconds(seconds);
  const py::gil_scoped_release release;
  return ceilings.ReadRate(count, seconds, ahead);
}

std::vector<double> ReadPasses(Ceilings& ceilings, std::int64_t threads, std::int64_t bytes,
                               double seconds, std::size_t ahead) {
  const std::size_t count = AtLeastOne(threads, "threads");
  const std::size_t size = AtLeastOne(bytes, "bytes");
  CheckSeconds(seconds);
  const py::gil_scoped_release release;
  return ceilings.ReadPasses(count, size, seconds, ahead);
}

double PeakRate(Ceilings& ceilings, const std::string& name, std::int64_t threads, double seconds) {
  const std::size_t count = AtLeastOne(threads, "threads");
  CheckSeconds(seconds);
  const py::gil_scoped_release release;
  return ceilings.PeakRate(name, count, seconds);
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
      .def("read_rate", &ReadRate, py::arg("threads"), py::arg("seconds"), py::arg("ahead"))
      .def("read_passes", &ReadPasses, py::arg("threads"), py::arg("bytes"), py::arg("seconds"),
           py::arg("ahead"))
      .def("peak_rate", &PeakRate, py::arg("name"), py::arg("threads"), py::arg("seconds"))
      .def("core_hz", &CoreHz, py::arg("seconds"));
  module.def("peaks", &Peaks);
}

}  // namespace ktd
