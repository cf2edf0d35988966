// The Mixture-of-Experts forward over host memory: layers, calls, and the pool that computes them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "aligned.h"
#include "call_log.h"
#include "expert_layout.h"
#include "kernels/kernel_table.h"
#include "numa.h"
#include "routing.h"
#include "thread_pool.h"
#include "work_list.h"

namespace ktd {

// One call's arguments. Everything is borrowed until the call has returned. Pointers are aligned to
// their elements and may be null only if tokens is 0. `out` overlaps nothing else.
struct ForwardCall {
  std::size_t layer;
  const Bf16* x;            // [tokens, hidden]
  const std::int32_t* ids;  // [tokens, top_k], -1: not ours
  const float* weights;     // [tokens, top_k]
  float* out;               // [tokens, hidden], completely written
  std::size_t tokens;
  std::size_t top_k;
  bool sparse_out = false;  // rows of `out` whose token has no expert of ours stay as they are
};

struct PoolOptions {
  std::size_t threads = 0;     // 0: one per CPU of `cpus`, or as many as the cgroups' quota allows
  std::vector<int> cpus = {};  // empty: one CPU of each physical core that this thread may use
  // How long workers spin before they sleep, when there is no task and at a barrier. Empty: as long
  // as a wake-up takes, less if the pool has every CPU that the process may use.
  std::optional<std::chrono::microseconds> spin = {};
  std::string sysfs = "/sys/devices/system";  // where cores and NUMA nodes are told
  // Bounds the activations of a long prefill; beyond it the weights are streamed once more.
  std::size_t activation_bytes = std::size_t{512} << 20;
  // Measures from how many tokens on the many-token kernels pay; else the table's figures are used.
  bool measure_crossover = true;
};

class TicketQueue;

// Thread-safe: calls are computed one after the other. In a forked child every call is refused.
class ExpertPool {
 public:
  // `kernel` outlives the pool. Throws CheckError for a CPU that may not be used, or no threads.
  ExpertPool(const Kernel& kernel, const PoolOptions& options);
  ~ExpertPool();
  ExpertPool(const ExpertPool&) = delete;
  ExpertPool& operator=(const ExpertPool&) = delete;

  const Kernel& kernel() const noexcept { return kernel_; }
  std::size_t threads() const noexcept { return threads_->threads(); }
  const std::vector<int>& cpus() const noexcept { return cpus_; }
  const NumaHomes& homes() const noexcept { return homes_; }

  // What an operator should know about the number of threads, or "".
  const std::string& note() const noexcept { return note_; }

  // Makes fresh memory for a layer's matrices appear on the nodes that will read it, in parallel.
  // `memory` holds matrices.bytes(), and keeps what is in it.
  void Place(const LayerMatrices& matrices, std::uint8_t* memory);

  // From so many tokens of an expert on its many-token kernel is used; 0 before the first layer of
  // the format.
  std::size_t many_from(WeightFormat format) const noexcept {
    return many_from_[static_cast<std::size_t>(format)];
  }

  // Returns the layer's handle: 0, 1, ... in the order of the calls. Throws CheckError for weights
  // that the kernels do not compute.
  std::size_t AddLayer(const LayerWeights& weights);

  // Computes `call` with the calling thread as a worker; returns the bytes of the distinct experts'
  // weights. CheckError: nothing was written. std::runtime_error: a task failed, the message names
  // layer and expert, out is undefined and the pool usable.
  std::uint64_t Forward(const ForwardCall& call);

  // The same on a thread of the pool. Arguments are checked here; Wait returns or throws what
  // Forward would, once for each ticket.
  std::uint64_t Submit(const ForwardCall& call);
  std::uint64_t Wait(std::uint64_t ticket);

  // Grows with every expert's share that worker 0 has finished; so it grows while a call makes
  // progress, and stops when the pool hangs.
  const std::atomic<std::uint64_t>& heartbeat() const noexcept { return heartbeat_; }
  // Grows along with it, until another one, or null, takes its place. Not while a call computes.
  void BeatAlso(std::uint64_t* word);
  // Every call that reads weights is added to it from now on.
  void LogCalls(const CallLog& log);
  std::uint64_t calls() const noexcept { return calls_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_read() const noexcept { return bytes_.load(std::memory_order_relaxed); }

 private:
  struct Pass;  // a slice of a call's tokens whose activations fit in the scratch

  // How one expert of a pass is computed.
  struct Plan {
    const ExpertKernel* kernel;
    std::size_t act;       // offset of its activations
    std::size_t prepared;  // offset of what they are prepared to, if they are
    ExpertMatrices matrices;
  };

  struct alignas(kCacheLine) Worker {
    AlignedArray<std::uint8_t> scratch;
    AlignedArray<float> partial;      // some columns of out for all tokens of a pass
    std::size_t prepared = SIZE_MAX;  // the group whose tokens the scratch holds
  };

  void CheckUsable() const;
  const LayerWeights& CheckCall(const ForwardCall& call) const;
  std::uint64_t Compute(const LayerWeights& layer, const ForwardCall& call);
  std::uint64_t ComputePass(Pass& pass);
  std::size_t MakePlans(const LayerWeights& layer, std::size_t tokens);
  static void RunPhase(void* pass, std::size_t phase, std::size_t worker, std::size_t workers);
  void GateUp(const Pass& pass, std::size_t worker, const WorkRange& range);
  void Prepare(const Pass& pass, std::size_t worker, const WorkRange& range);
  void Down(const Pass& pass, std::size_t worker, const WorkRange& range);
  void DownRows(const Pass& pass, std::size_t worker, std::size_t begin, std::size_t end);
  void AddDown(const Pass& pass, std::size_t worker, DownJob& job);
  void Beat(std::size_t worker) noexcept;

  const Kernel& kernel_;
  std::vector<int> cpus_;
  NumaHomes homes_;
  std::string note_;
  const std::size_t activation_bytes_;
  const bool measure_crossover_;
  std::mutex mutex_;  // held by the one call that computes, or adds a layer
  std::vector<LayerWeights> layers_;
  std::unique_ptr<ThreadPool> threads_;
  Routing routing_;
  std::vector<Plan> plans_;             // by group of the pass
  std::vector<WorkGroup> work_;         // gate and up rows of each
  std::vector<WorkGroup> to_prepare_;   // pairs of each, no units where there is nothing to do
  bool prepares_ = false;               // whether the pass has that phase
  std::vector<std::uint32_t> node_of_;  // homes of the pass's workers
  std::size_t down_unit_ = 0;           // rows of out that are computed together
  std::unique_ptr<WorkList> gate_up_;
  std::unique_ptr<WorkList> prepare_;
  std::unique_ptr<WorkList> down_;
  AlignedArray<std::uint8_t> activations_;  // of the pass, group by group
  std::unique_ptr<Worker[]> workers_;
  std::size_t many_from_[kWeightFormats] = {};
  std::vector<bool> seen_;  // by expert: counted in this call's bytes
  alignas(kCacheLine) std::atomic<std::uint64_t> heartbeat_{0};
  std::uint64_t* also_beats_ = nullptr;
  CallLog log_;
  std::atomic<std::uint64_t> calls_{0};
  std::atomic<std::uint64_t> bytes_{0};
  std::mutex queue_mutex_;
  std::unique_ptr<TicketQueue> queue_;  // declared last: ends before what it computes with
};

}  // namespace ktd
