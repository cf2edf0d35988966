#include "split.h"

#include <atomic>

#include "check.h"

namespace ktd {
namespace {

void Count(std::uint64_t& counter) noexcept {
  const std::atomic_ref<std::uint64_t> cell(counter);
  cell.store(cell.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace

template <class Id>
SplitCounts Split(const SplitCall<Id>& call) {
  const std::size_t pairs = call.tokens * call.top_k;
  if (pairs == 0) return {0, 0};
  KTD_CHECK(call.ids != nullptr && call.table != nullptr && call.slots != nullptr &&
                call.cpu_ids != nullptr,
            "an argument of a split with tokens is at address 0");
  for (std::size_t i = 0; i < pairs; ++i) {
    const auto id = static_cast<std::int64_t>(call.ids[i]);
    KTD_CHECK(id >= -1 && id < static_cast<std::int64_t>(call.num_experts), "token ",
              i / call.top_k, " asks for expert ", id, "; the layer has ", call.num_experts,
              " experts, and -1 stands for none");
  }
  SplitCounts counts{0, 0};
  for (std::size_t i = 0; i < pairs; ++i) {
    const Id id = call.ids[i];
    call.slots[i] = -1;
    call.cpu_ids[i] = -1;
    if (id < 0) continue;
    const auto expert = static_cast<std::size_t>(id);
    const std::int32_t slot = call.table[expert];
    const bool in_slot = slot >= 0;
    if (in_slot) {
      call.slots[i] = slot;
      ++counts.in_slots;
    } else {
      call.cpu_ids[i] = static_cast<std::int32_t>(id);
      ++counts.on_cpu;
    }
    if (call.counters != nullptr) Count(call.counters[2 * expert + (in_slot ? 0 : 1)]);
  }
  return counts;
}

template SplitCounts Split(const SplitCall<std::int32_t>& call);
template SplitCounts Split(const SplitCall<std::int64_t>& call);

}  // namespace ktd
