#include "bindings_copies.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "check.h"
#include "slot_copies.h"

namespace py = pybind11;

namespace ktd {
namespace {

using Addresses = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

std::unique_ptr<SlotCopies> Make(const Addresses& copies, std::int64_t piece,
                                 const std::vector<std::uintptr_t>& streams,
                                 std::int64_t most_ahead, std::int64_t together) {
  KTD_CHECK(piece > 0, "a piece has at least one byte, not ", piece);
  KTD_CHECK(most_ahead > 0, "at least one byte may be in flight, not ", most_ahead);
  KTD_CHECK(together > 0, "the driver is given at least one copy at a time, not ", together);
  KTD_CHECK(copies.ndim() == 2 && copies.shape(1) == 3,
            "copies are rows of destination, source and bytes");
  std::vector<SlotCopy> list;
  list.reserve(static_cast<std::size_t>(copies.shape(0)));
  const auto rows = copies.unchecked<2>();
  for (py::ssize_t row = 0; row < copies.shape(0); ++row) {
    const std::int64_t to = rows(row, 0), from = rows(row, 1), size = rows(row, 2);
    KTD_CHECK(size >= 0, "a copy has no less than 0 bytes, not ", size);
    KTD_CHECK(size == 0 || (to != 0 && from != 0), "a copy is from or to address 0");
    list.push_back({static_cast<std::uintptr_t>(to), static_cast<std::uintptr_t>(from),
                    static_cast<std::size_t>(size)});
  }
  auto engine = streams.empty() ? HostCopies()
                                : DeviceCopies(streams, static_cast<std::size_t>(most_ahead),
                                               static_cast<std::size_t>(together));
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
           py::arg("streams") = std::vector<std::uintptr_t>(), py::arg("most_ahead") = 64 << 20,
           py::arg("together") = 64)
      .def("run", &Run, py::arg("seconds"), py::arg("rate") = 0.0)
      .def("finish", &SlotCopies::Finish)
      .def_property_readonly("done", &SlotCopies::done);
}

}  // namespace ktd
