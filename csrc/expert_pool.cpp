#include "expert_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "check.h"
#include "cpu_quota.h"
#include "crossover.h"
#include "expert_pool_pass.h"
#include "first_touch.h"
#include "ticket_queue.h"
#include "topology.h"

namespace ktd {
namespace {

using std::chrono::microseconds;

// A worker is worth its wake-up (about 1 us spinning, 50 asleep) from a few microseconds of work
// on.
constexpr std::size_t kBytesPerWorker = 256 * 1024;

// Tokens of an expert that cost no more than its first: below it, the weights' bytes are the cost.
constexpr std::size_t kFreeTokens = 8;

constexpr std::size_t kDownUnit = kCacheLine / sizeof(float);  // so that no two share a line of out

// Rows of the last phase taken together from so many tokens on: each range of rows reads every
// expert's activations, which then come from beyond L2 (8,192 tokens of qwen3-30b-a3b in bf16 on 16
// cores: 38 ms of products with 32 rows, 31 with 64).
constexpr std::size_t kWideTokens = 512;
constexpr std::size_t kWideDownUnit = 64;

std::uint64_t Nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::nanoseconds(now).count());
}

constexpr std::size_t Units(std::size_t rows, std::size_t unit) { return (rows + unit - 1) / unit; }

// Spinning saves the wake-up between two layers of a step; when the pool has every CPU that the
// process may use, it would take them from the caller's other threads.
microseconds SpinFor(std::size_t threads, std::size_t cpus) {
  return threads < cpus ? microseconds(50) : microseconds(10);
}

// A thread for each core, unless a quota would then stop them all for part of every period.
std::size_t DefaultThreads(std::size_t cores, std::string& note) {
  const double quota = CpuQuota();
  if (quota >= static_cast<double>(cores)) return cores;
  const std::size_t threads = std::max<std::size_t>(static_cast<std::size_t>(quota), 1);
  char cpus[32];
  std::snprintf(cpus, sizeof(cpus), "%.4g", quota);
  note = Concat("the cgroup's CPU quota is ", cpus, " CPUs, so the pool has ", threads,
                threads == 1 ? " thread" : " threads", " for ", cores, " cores");
  return threads;
}

}  // namespace

ExpertPool::ExpertPool(const Kernel& kernel, const PoolOptions& options)
    : kernel_(kernel),
      activation_bytes_(options.activation_bytes),
      measure_crossover_(options.measure_crossover) {
  const std::vector<int> allowed = AllowedCpus();
  cpus_ = options.cpus.empty() ? OnePerCore(allowed, options.sysfs + "/cpu") : options.cpus;
  for (const int cpu : cpus_) {
    KTD_CHECK(std::find(allowed.begin(), allowed.end(), cpu) != allowed.end(), "CPU ", cpu,
              " is not one that this process may use (sched_getaffinity)");
  }
  const std::size_t threads =
      options.threads == 0 ? DefaultThreads(cpus_.size(), note_) : options.threads;
  KTD_CHECK(threads <= 4096, "a pool of ", threads, " threads is refused; 4096 are the most");
  workers_ = std::make_unique<Worker[]>(threads);
  gate_up_ = std::make_unique<WorkList>(threads);
  prepare_ = std::make_unique<WorkList>(threads);
  down_ = std::make_unique<WorkList>(threads);
  threads_ = std::make_unique<ThreadPool>(threads, cpus_,
                                          options.spin.value_or(SpinFor(threads, allowed.size())));
  std::vector<int> worker_cpus;
  for (std::size_t i = 0; i < threads; ++i) worker_cpus.push_back(cpus_[i % cpus_.size()]);
  homes_ = HomesOf(ReadNumaNodes(options.sysfs), worker_cpus);
}

ExpertPool::~ExpertPool() {
  // A forked child has no thread to join, and the queue's lock may have been held at the fork.
  if (!threads_->UsableHere()) static_cast<void>(queue_.release());
}

void ExpertPool::CheckUsable() const {
  KTD_CHECK(threads_->UsableHere(),
            "this pool's threads stayed behind when the process forked: make a pool in the child");
}

std::size_t ExpertPool::AddLayer(const LayerWeights& weights) {
  CheckUsable();
  CheckLayer(weights);
  const FormatKernels& kernels = kernel_.For(weights.format);
  KTD_CHECK(kernels.few != nullptr, "the ", kernel_.name, " kernels do not compute experts in ",
            kFormatNames[static_cast<std::size_t>(weights.format)]);
  const std::lock_guard lock(mutex_);
  for (const ExpertKernel* kernel : {kernels.few, kernels.many}) {
    const std::size_t bytes = kernel->scratch_bytes(weights.hidden, weights.intermediate);
    for (std::size_t i = 0; i < threads(); ++i) workers_[i].scratch.Reserve(bytes);
  }
  std::size_t& many_from = many_from_[static_cast<std::size_t>(weights.format)];
  if (many_from == 0) {
    many_from = measure_crossover_ ? MeasureCrossover(kernels, weights) : kernels.many_from;
  }
  layers_.push_back(weights);
  return layers_.size() - 1;
}

void ExpertPool::BeatAlso(std::uint64_t* word) {
  const std::lock_guard lock(mutex_);
  also_beats_ = word;
}

void ExpertPool::LogCalls(const CallLog& log) {
  const std::lock_guard lock(mutex_);
  log_ = log;
}

void ExpertPool::Place(const LayerMatrices& matrices, std::uint8_t* memory) {
  CheckUsable();
  const std::lock_guard lock(mutex_);
  TouchFirst(*threads_, homes_, matrices, memory);
}

const LayerWeights& ExpertPool::CheckCall(const ForwardCall& call) const {
  KTD_CHECK(call.layer < layers_.size(), "there is no layer with handle ", call.layer,
            ": the pool has ", layers_.size());
  KTD_CHECK(call.top_k > 0, "top_k must be at least 1");
  KTD_CHECK(call.tokens <= INT32_MAX, "a call takes at most 2147483647 tokens, not ", call.tokens);
  const LayerWeights& layer = layers_[call.layer];
  if (call.tokens == 0) return layer;
  KTD_CHECK(
      call.x != nullptr && call.ids != nullptr && call.weights != nullptr && call.out != nullptr,
      "an argument of a call with tokens is at address 0");
  for (std::size_t i = 0; i < call.tokens * call.top_k; ++i) {
    const std::int64_t id = call.ids[i];
    KTD_CHECK(id >= -1 && id < static_cast<std::int64_t>(layer.num_experts), "token ",
              i / call.top_k, " asks for expert ", id, "; layer ", call.layer, " has experts 0 to ",
              layer.num_experts - 1, ", and -1 for none");
  }
  return layer;
}

std::uint64_t ExpertPool::Forward(const ForwardCall& call) {
  CheckUsable();
  const std::lock_guard lock(mutex_);
  const LayerWeights& layer = CheckCall(call);
  if (!log_.in_use()) return Compute(layer, call);
  const std::uint64_t began = Nanoseconds();
  const std::uint64_t bytes = Compute(layer, call);
  if (bytes > 0) log_.Add({began, Nanoseconds(), bytes, call.tokens});
  return bytes;
}

std::uint64_t ExpertPool::Submit(const ForwardCall& call) {
  CheckUsable();
  {
    const std::lock_guard lock(mutex_);
    CheckCall(call);
  }
  const std::lock_guard lock(queue_mutex_);
  if (!queue_) queue_ = std::make_unique<TicketQueue>(cpus_.front());
  return queue_->Submit([this, call] { return Forward(call); });
}

std::uint64_t ExpertPool::Wait(std::uint64_t ticket) {
  CheckUsable();
  TicketQueue* queue = nullptr;
  {
    const std::lock_guard lock(queue_mutex_);
    queue = queue_.get();
  }
  KTD_CHECK(queue != nullptr, "ticket ", ticket, " is not outstanding: nothing was submitted");
  return queue->Wait(ticket);
}

std::uint64_t ExpertPool::Compute(const LayerWeights& layer, const ForwardCall& call) {
  const ExpertKernel& many = *kernel_.For(layer.format).many;
  std::size_t pair_bytes = layer.intermediate * sizeof(Bf16);
  if (many.prepare != nullptr) {
    pair_bytes += many.prepared_bytes(layer.intermediate, many.prepare_unit) / many.prepare_unit;
  }
  const std::size_t token_bytes = call.top_k * pair_bytes;
  const std::size_t step = std::max<std::size_t>(1, activation_bytes_ / token_bytes);
  std::uint64_t experts = 0;
  seen_.assign(layer.num_experts, false);
  for (std::size_t first = 0; first < call.tokens; first += step) {
    ForwardCall part = call;
    part.tokens = std::min(step, call.tokens - first);
    part.x += first * layer.hidden;
    part.ids += first * call.top_k;
    part.weights += first * call.top_k;
    part.out += first * layer.hidden;
    Pass pass{this, &layer, part};
    experts += ComputePass(pass);
  }
  const std::uint64_t bytes = experts * ExpertBytes(layer);
  calls_.fetch_add(1, std::memory_order_relaxed);
  bytes_.fetch_add(bytes, std::memory_order_relaxed);
  return bytes;
}

// Decides how each expert of the pass is computed; returns the bytes of weights, weighted by the
// tokens.
std::size_t ExpertPool::MakePlans(const LayerWeights& layer, std::size_t tokens) {
  const FormatKernels& kernels = kernel_.For(layer.format);
  const std::size_t expert_bytes = ExpertBytes(layer);
  plans_.clear();
  work_.clear();
  to_prepare_.clear();
  prepares_ = false;
  // Two ranges for every worker at least, so that there is something left to take over.
  const bool wide = tokens >= kWideTokens && layer.hidden >= 2 * kWideDownUnit * threads();
  down_unit_ = wide ? kWideDownUnit : kDownUnit;
  std::size_t act = 0;
  std::size_t bytes = 0;
  for (const ExpertGroup& group : routing_.groups()) {
    const std::size_t count = group.count();
    const ExpertKernel* kernel = count < many_from(layer.format) ? kernels.few : kernels.many;
    const std::size_t units = Units(layer.intermediate, kernel->unit);
    const std::size_t cost = Units(count, kFreeTokens) * expert_bytes;
    const std::size_t prepared = act + kernel->act_bytes(layer.intermediate, count);
    plans_.push_back({kernel, act, prepared, MatricesOf(layer, group.expert)});
    work_.push_back({units, std::max<std::size_t>(cost / units, 1)});
    down_unit_ = std::max(down_unit_, kernel->unit);
    act = prepared;
    if (kernel->prepare != nullptr) {
      prepares_ = true;
      to_prepare_.push_back({Units(count, kernel->prepare_unit), kernel->prepare_unit});
      act += kernel->prepared_bytes(layer.intermediate, count);
    } else {
      to_prepare_.push_back({0, 1});
    }
    bytes += cost;
  }
  activations_.Reserve(act);
  return bytes;
}

// Returns how many experts this pass is the first of its call to read.
std::uint64_t ExpertPool::ComputePass(Pass& pass) {
  const LayerWeights& layer = *pass.layer;
  const ForwardCall& call = pass.call;
  routing_.Build(call.ids, call.weights, call.tokens, call.top_k, layer.num_experts);
  routing_.Scale(layer.routed_scale);
  const std::size_t bytes = MakePlans(layer, call.tokens);
  std::uint64_t fresh = 0;
  for (const ExpertGroup& group : routing_.groups()) {
    if (!seen_[group.expert]) ++fresh;
    seen_[group.expert] = true;
  }
  if (call.sparse_out && routing_.pairs() == 0) return 0;
  const std::size_t wanted = std::clamp<std::size_t>(bytes / kBytesPerWorker, 1, threads());
  const std::span<const std::uint32_t> team = threads_->Choose(wanted);
  const std::size_t workers = team.size();
  const WorkGroup down{Units(layer.hidden, down_unit_), 1};
  if (homes_.nodes.size() == 1) {
    gate_up_->Reset(work_, workers);
    if (prepares_) prepare_->Reset(to_prepare_, workers);
    down_->Reset({&down, 1}, workers);
  } else {
    node_of_.clear();
    for (const std::uint32_t worker : team) node_of_.push_back(homes_.home_of[worker]);
    gate_up_->Reset(work_, {node_of_, homes_.shares});
    if (prepares_) prepare_->Reset(to_prepare_, {node_of_, homes_.shares});
    down_->Reset({&down, 1}, {node_of_, homes_.shares});
  }
  threads_->Run({prepares_ ? std::size_t{3} : std::size_t{2}, RunPhase, &pass});
  return fresh;
}

}  // namespace ktd
