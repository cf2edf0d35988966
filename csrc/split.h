// Divides one step's routing between slots and the CPU pool; the CPU twin of the device's kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ktd {

template <class Id>  // std::int32_t or std::int64_t
struct SplitCall {
  const Id* ids;              // [tokens, top_k]; -1 is padding
  const std::int32_t* table;  // [num_experts]: the expert's slot, or negative
  std::int32_t* slots;        // [tokens, top_k] written: slot, or -1
  std::int32_t* cpu_ids;      // [tokens, top_k] written: expert that the CPU computes, or -1
  std::uint64_t* counters;    // [num_experts, 2] (slot, CPU), grown; may be null
  std::size_t tokens;
  std::size_t top_k;
  std::size_t num_experts;
};

struct SplitCounts {
  std::uint64_t in_slots;
  std::uint64_t on_cpu;
};

// Each pair goes to exactly one side. Throws CheckError for an id outside [-1, num_experts), before
// anything is written. The counters are written by one thread and may be read by another process:
// each is stored whole.
template <class Id>
SplitCounts Split(const SplitCall<Id>& call);

extern template SplitCounts Split(const SplitCall<std::int32_t>& call);
extern template SplitCounts Split(const SplitCall<std::int64_t>& call);

}  // namespace ktd
