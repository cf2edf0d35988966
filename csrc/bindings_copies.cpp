#include "bindings_copies.h"

#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "slot_copies.h"

namespace py = pybind11;

namespace ktd {
namespace {

using Addresses = std::vector<std::tuple<std::uintptr_t, std::uintptr_t, std::size_t>>;

std::unique_ptr<SlotCopies> Make(const Addresses& copies, std::int64_t piece, bool device,
                                 std::uintptr_t stream, std::int64_t most_ahead) {
  KTD_CHECK(piece > 0, "a piece has at least one byte, not ", piece);
  KTD_CHECK(most_ahead > 0, "at least one byte may be in flight, not ", most_ahead);
  std::vector<SlotCopy> list;
  list.reserve(copies.size());
  for (const auto& [to, from, size] : copies) {
    KTD_CHECK(size == 0 || (to != 0 && from != 0), "a copy is from or to address 0");
    list.push_back({to, from, size});
  }
  auto engine = device ? DeviceCopies(stream, static_cast<std::size_t>(most_ahead)) : HostCopies();
  return std::make_unique<SlotCopies>(std::move(list), std::move(engine),
                                      static_cast<std::size_t>(piece));
}

std::size_t Run(SlotCopies& copies, double seconds, double rate) {
  KTD_CHECK(seconds > 0, "a turn takes more than 0 s, not ", seconds);
  KTD_CHECK(rate >= 0, "a rate is not below 0, but is ", rate);
  const std::chrono::duration<double> turn(seconds);
  const py::gil_scoped_release release;
  return copies.Run(std::chrono::duration_cast<std::chrono::nanoseconds>(turn), rate);
}

}  // namespace

void BindCopies(py::module_& module) {
  py::class_<SlotCopies>(module, "SlotCopies")
      .def(py::init(&Make), py::arg("copies"), py::arg("piece"), py::kw_only(),
           py::arg("device") = false, py::arg("stream") = 0, py::arg("most_ahead") = 64 << 20)
      .def("run", &Run, py::arg("seconds"), py::arg("rate") = 0.0)
      .def_property_readonly("done", &SlotCopies::done);
}

}  // namespace ktd
