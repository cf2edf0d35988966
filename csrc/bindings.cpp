// ktd.experts._native: addresses in, addresses out. daemon/ktd/experts/_native.pyi documents it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings_ceilings.h"
#include "bindings_copies.h"
#include "bindings_quantise.h"
#include "check.h"
#include "cpu_features.h"
#include "cpu_quota.h"
#include "expert_pool.h"
#include "kernels/kernel_table.h"
#include "lost_pages.h"
#include "pool_mailbox.h"
#include "split.h"

namespace py = pybind11;

namespace ktd {
namespace {

template <class T>
T* At(std::uintptr_t address, const char* name) {
  KTD_CHECK(address % alignof(T) == 0, name, " is at an address that is no multiple of ",
            alignof(T));
  return reinterpret_cast<T*>(address);
}

std::size_t Count(std::int64_t value, const char* name) {
  KTD_CHECK(value >= 0, name, " must not be negative, but is ", value);
  return static_cast<std::size_t>(value);
}

std::unique_ptr<ExpertPool> MakePool(std::int64_t threads, const std::string& isa,
                                     std::vector<int> cpus, std::optional<std::int64_t> spin_us) {
  std::string name = isa;
  const char* override = std::getenv("KTD_ISA");
  if (name.empty() && override != nullptr) name = override;
  const Kernel& kernel = SelectKernel(name, DetectCpuFeatures());
  PoolOptions options;
  options.threads = Count(threads, "threads");
  options.cpus = std::move(cpus);
  if (spin_us) options.spin = std::chrono::microseconds(Count(*spin_us, "spin_us"));
  const py::gil_scoped_release release;
  return std::make_unique<ExpertPool>(kernel, options);
}

template <class Value, std::size_t N>
Value Named(const std::string& name, const std::string_view (&names)[N], const char* what) {
  for (std::size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Value>(i);
  }
  KTD_CHECK(false, "there is no ", what, " '", name, "'");
  return Value{};
}

// In the order of their enums.
constexpr std::string_view kScaleNames[] = {"", "float32", "bf16", "float16", "e8m0"};
constexpr std::string_view kActivationNames[] = {"swish", "gelu", "gelu_tanh"};

// By the name of a tensor: address and pitch of each projection's lines.
using ScatteredTensors =
    std::map<std::string, std::vector<std::pair<std::uintptr_t, std::int64_t>>>;

std::vector<Lines> LinesOf(const ScatteredTensors& tensors, const std::string& name,
                           std::size_t alignment) {
  std::vector<Lines> lines;
  const auto found = tensors.find(name);
  if (found == tensors.end()) return lines;
  for (const auto& [address, pitch] : found->second) {
    KTD_CHECK(address % alignment == 0 && Count(pitch, "pitch") % alignment == 0, name,
              " has lines at addresses that are no multiples of ", alignment);
    lines.push_back({At<const std::uint8_t>(address, name.c_str()), Count(pitch, "pitch")});
  }
  return lines;
}

Scattered ScatteredOf(const ScatteredTensors& tensors, const std::string& name,
                      const LayerWeights& weights) {
  const std::size_t element = weights.format == WeightFormat::kBf16 ? sizeof(Bf16)
                              : ColumnMajor(weights.format) || weights.format == WeightFormat::kInt4
                                  ? sizeof(std::int32_t)
                                  : 1;
  return {
      LinesOf(tensors, name, element),
      LinesOf(tensors, name + "_scale", std::max<std::size_t>(ScaleBytes(weights.scale_type), 1)),
      LinesOf(tensors, name + "_zeros", sizeof(std::int32_t))};
}

std::size_t AddLayer(ExpertPool& pool, std::int64_t num_experts, std::int64_t hidden,
                     std::int64_t intermediate, std::uintptr_t w13, std::uintptr_t w2,
                     const std::string& format, std::int64_t group, const std::string& scale_type,
                     std::uintptr_t w13_scale, std::uintptr_t w2_scale, std::uintptr_t w13_zeros,
                     std::uintptr_t w2_zeros, std::uintptr_t w13_bias, std::uintptr_t w2_bias,
                     bool interleaved, const std::string& activation, float alpha, float limit,
                     float beta, float routed_scale, bool weights_before_input,
                     const ScatteredTensors& scattered) {
  LayerWeights weights;
  weights.num_experts = Count(num_experts, "num_experts");
  weights.hidden = Count(hidden, "hidden");
  weights.intermediate = Count(intermediate, "intermediate");
  weights.format = Named<WeightFormat>(format, kFormatNames, "weight format");
  weights.group = Count(group, "group");
  weights.scale_type = Named<ScaleType>(scale_type, kScaleNames, "scale type");
  weights.interleaved = interleaved;
  if (weights.format == WeightFormat::kBf16) {
    At<const Bf16>(w13, "w13");
    At<const Bf16>(w2, "w2");
  }
  weights.w13 = At<const std::uint8_t>(w13, "w13");
  weights.w2 = At<const std::uint8_t>(w2, "w2");
  weights.w13_scales = At<const std::uint8_t>(w13_scale, "w13_scale");
  weights.w2_scales = At<const std::uint8_t>(w2_scale, "w2_scale");
  weights.w13_zeros = At<const std::uint8_t>(w13_zeros, "w13_zeros");
  weights.w2_zeros = At<const std::uint8_t>(w2_zeros, "w2_zeros");
  weights.w13_scattered = ScatteredOf(scattered, "w13", weights);
  weights.w2_scattered = ScatteredOf(scattered, "w2", weights);
  weights.w13_bias = At<const Bf16>(w13_bias, "w13_bias");
  weights.w2_bias = At<const Bf16>(w2_bias, "w2_bias");
  weights.activation = {Named<ActivationKind>(activation, kActivationNames, "activation"), alpha,
                        limit, beta};
  weights.routed_scale = routed_scale;
  weights.weights_before_input = weights_before_input;
  const py::gil_scoped_release release;
  return pool.AddLayer(weights);
}

ForwardCall MakeCall(std::int64_t layer, std::uintptr_t x, std::uintptr_t ids,
                     std::uintptr_t weights, std::uintptr_t out, std::int64_t tokens,
                     std::int64_t top_k) {
  return {Count(layer, "layer"),
          At<const Bf16>(x, "x"),
          At<const std::int32_t>(ids, "ids"),
          At<const float>(weights, "weights"),
          At<float>(out, "out"),
          Count(tokens, "tokens"),
          Count(top_k, "top_k")};
}

std::uint64_t Forward(ExpertPool& pool, std::int64_t layer, std::uintptr_t x, std::uintptr_t ids,
                      std::uintptr_t weights, std::uintptr_t out, std::int64_t tokens,
                      std::int64_t top_k) {
  const ForwardCall call = MakeCall(layer, x, ids, weights, out, tokens, top_k);
  const py::gil_scoped_release release;
  return pool.Forward(call);
}

std::uint64_t Submit(ExpertPool& pool, std::int64_t layer, std::uintptr_t x, std::uintptr_t ids,
                     std::uintptr_t weights, std::uintptr_t out, std::int64_t tokens,
                     std::int64_t top_k) {
  const ForwardCall call = MakeCall(layer, x, ids, weights, out, tokens, top_k);
  const py::gil_scoped_release release;
  return pool.Submit(call);
}

std::uint64_t Wait(ExpertPool& pool, std::uint64_t ticket) {
  const py::gil_scoped_release release;
  return pool.Wait(ticket);
}

void Place(ExpertPool& pool, std::uintptr_t address, std::int64_t experts, std::int64_t parts,
           std::int64_t rows, std::int64_t row_bytes) {
  const LayerMatrices matrices{Count(experts, "experts"), Count(parts, "parts"),
                               Count(rows, "rows"), Count(row_bytes, "row_bytes")};
  const py::gil_scoped_release release;
  pool.Place(matrices, At<std::uint8_t>(address, "address"));
}

void LogCalls(ExpertPool& pool, std::uintptr_t address, std::int64_t records) {
  KTD_CHECK(address != 0, "a log of calls cannot be at address 0");
  pool.LogCalls({At<std::uint64_t>(address, "address"), Count(records, "records")});
}

std::unique_ptr<PoolMailbox> MakeMailbox(ExpertPool& pool, std::uintptr_t address) {
  KTD_CHECK(address != 0 && address % kCacheLine == 0,
            "a mailbox is at a multiple of 64 bytes, not at ", address);
  return std::make_unique<PoolMailbox>(pool, *At<Mailbox>(address, "address"));
}

template <class Id>
SplitCounts SplitFor(std::uintptr_t ids, std::uintptr_t table, std::uintptr_t slots,
                     std::uintptr_t cpu_ids, std::uintptr_t counters, std::int64_t tokens,
                     std::int64_t top_k, std::int64_t num_experts) {
  const SplitCall<Id> call{At<const Id>(ids, "ids"),
                           At<const std::int32_t>(table, "table"),
                           At<std::int32_t>(slots, "slots_out"),
                           At<std::int32_t>(cpu_ids, "cpu_ids_out"),
                           At<std::uint64_t>(counters, "counters"),
                           Count(tokens, "tokens"),
                           Count(top_k, "top_k"),
                           Count(num_experts, "num_experts")};
  const py::gil_scoped_release release;
  return Split(call);
}

std::pair<std::uint64_t, std::uint64_t> SplitAny(std::uintptr_t ids, bool ids_are_int64,
                                                 std::uintptr_t table, std::uintptr_t slots,
                                                 std::uintptr_t cpu_ids, std::uintptr_t counters,
                                                 std::int64_t tokens, std::int64_t top_k,
                                                 std::int64_t num_experts) {
  const auto split = ids_are_int64 ? SplitFor<std::int64_t> : SplitFor<std::int32_t>;
  const SplitCounts counts =
      split(ids, table, slots, cpu_ids, counters, tokens, top_k, num_experts);
  return {counts.in_slots, counts.on_cpu};
}

py::list Isas() {
  const CpuFeatures have = DetectCpuFeatures();
  py::list rows;
  for (const Kernel& kernel : KernelTable()) {
    const CpuFeatures missing = kernel.required & ~have;
    py::dict row;
    row["name"] = kernel.name;
    row["required"] = FeatureNames(kernel.required);
    row["missing"] = FeatureNames(missing);
    row["supported"] = missing == 0;
    rows.append(row);
  }
  return rows;
}

// ValueError with the sentence; where it was refused goes into a note, for developers.
void TranslateCheckError(const CheckError& error) {
  py::object exception = py::reinterpret_borrow<py::object>(PyExc_ValueError)(error.what());
  exception.attr("add_note")(Concat("refused at ", error.file(), ":", error.line()));
  PyErr_SetObject(PyExc_ValueError, exception.ptr());
}

}  // namespace
}  // namespace ktd

PYBIND11_MODULE(_native, module) {
  module.doc() = "ktd's native CPU expert pool";
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const ktd::CheckError& error) {
      ktd::TranslateCheckError(error);
    }
  });
  using ktd::ExpertPool;
  py::class_<ExpertPool>(module, "Pool")
      .def(py::init(&ktd::MakePool), py::arg("threads") = 0, py::arg("isa") = "",
           py::arg("cpus") = std::vector<int>{}, py::arg("spin_us") = py::none())
      .def_property_readonly("isa", [](const ExpertPool& pool) { return pool.kernel().name; })
      .def_property_readonly("threads", &ExpertPool::threads)
      .def_property_readonly("cpus", &ExpertPool::cpus)
      .def_property_readonly("nodes", [](const ExpertPool& pool) { return pool.homes().nodes; })
      .def_property_readonly("note", &ExpertPool::note)
      .def("place", &ktd::Place, py::arg("address"), py::arg("experts"), py::arg("parts"),
           py::arg("rows"), py::arg("row_bytes"))
      .def("add_layer", &ktd::AddLayer, py::arg("num_experts"), py::arg("hidden"),
           py::arg("intermediate"), py::arg("w13"), py::arg("w2"), py::kw_only(),
           py::arg("format") = "bf16", py::arg("group") = 0, py::arg("scale_type") = "",
           py::arg("w13_scale") = 0, py::arg("w2_scale") = 0, py::arg("w13_zeros") = 0,
           py::arg("w2_zeros") = 0, py::arg("w13_bias") = 0, py::arg("w2_bias") = 0,
           py::arg("interleaved") = false, py::arg("activation") = "swish", py::arg("alpha") = 1.0f,
           py::arg("limit") = std::numeric_limits<float>::infinity(), py::arg("beta") = 0.0f,
           py::arg("routed_scale") = 1.0f, py::arg("weights_before_input") = false,
           py::arg("scattered") = ktd::ScatteredTensors{})
      .def("forward", &ktd::Forward, py::arg("layer"), py::arg("x"), py::arg("ids"),
           py::arg("weights"), py::arg("out"), py::arg("tokens"), py::arg("top_k"))
      .def("submit", &ktd::Submit, py::arg("layer"), py::arg("x"), py::arg("ids"),
           py::arg("weights"), py::arg("out"), py::arg("tokens"), py::arg("top_k"))
      .def("wait", &ktd::Wait, py::arg("ticket"))
      .def("heartbeat_address",
           [](const ExpertPool& pool) {
             return reinterpret_cast<std::uintptr_t>(&pool.heartbeat());
           })
      .def("many_from",
           [](const ExpertPool& pool, const std::string& format) {
             return pool.many_from(
                 ktd::Named<ktd::WeightFormat>(format, ktd::kFormatNames, "weight format"));
           })
      .def("log_calls", &ktd::LogCalls, py::arg("address"), py::arg("records"))
      .def_property_readonly("calls", &ExpertPool::calls)
      .def_property_readonly("bytes_read", &ExpertPool::bytes_read);
  module.def("split", &ktd::SplitAny, py::arg("ids"), py::arg("ids_are_int64"), py::arg("table"),
             py::arg("slots_out"), py::arg("cpu_ids_out"), py::arg("counters"), py::arg("tokens"),
             py::arg("top_k"), py::arg("num_experts"));
  using ktd::PoolMailbox;
  py::class_<PoolMailbox>(module, "Mailbox")
      .def(py::init(&ktd::MakeMailbox), py::arg("pool"), py::arg("address"), py::keep_alive<1, 2>())
      .def("begin_step", [](PoolMailbox& box) { box.server().BeginStep(); })
      .def("end_step", [](PoolMailbox& box) { box.server().EndStep(); })
      .def_property_readonly("last_failure",
                             [](PoolMailbox& box) { return box.server().LastFailure(); })
      .def_property_readonly("long_seconds",
                             [](const PoolMailbox& box) { return box.long_nanoseconds() * 1e-9; })
      .def_property_readonly("long_bytes", &PoolMailbox::long_bytes);
  module.attr("MAILBOX_BYTES") = sizeof(ktd::Mailbox);
  module.attr("LONG_CALL") = ktd::PoolMailbox::kLongTokens;
  module.def(
      "watch_mapping",
      [](std::uintptr_t address, std::int64_t size, std::string report, std::string text) {
        ktd::WatchMapping(reinterpret_cast<const void*>(address), ktd::Count(size, "size"),
                          std::move(report), std::move(text));
      },
      py::arg("address"), py::arg("size"), py::arg("report"), py::arg("text"));
  module.def("cpu_quota", [] { return ktd::CpuQuota(); });
  module.def("isas", &ktd::Isas);
  ktd::BindCeilings(module);
  ktd::BindCopies(module);
  ktd::BindQuantise(module);
}
