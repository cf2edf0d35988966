#include "expert_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "check.h"
#include "cpu_quota.h"
#include "crossover.h"
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

// From so many tokens on, out is put together in memory of the worker's own: a few columns of all
// tokens are then a few pages in its cache, where in out they are as many pages as tokens.
constexpr std::size_t kPartialTokens = 64;
constexpr std::size_t kPartialFloats = std::size_t{2} << 20 >> 2;

constexpr std::size_t kDownUnit = kCacheLine / sizeof(float);  // so that no two share a line of out

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

struct ExpertPool::Pass {
  ExpertPool* pool;
  const LayerWeights* layer;
  ForwardCall call;
};

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
  return Compute(CheckCall(call), call);
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
std::size_t ExpertPool::MakePlans(const LayerWeights& layer) {
  const FormatKernels& kernels = kernel_.For(layer.format);
  const std::size_t expert_bytes = ExpertBytes(layer);
  plans_.clear();
  work_.clear();
  to_prepare_.clear();
  prepares_ = false;
  down_unit_ = kDownUnit;
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
  const std::size_t bytes = MakePlans(layer);
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

void ExpertPool::RunPhase(void* context, std::size_t phase, std::size_t worker, std::size_t) {
  const Pass& pass = *static_cast<const Pass*>(context);
  ExpertPool& pool = *pass.pool;
  WorkRange range{};
  pool.workers_[worker].prepared = SIZE_MAX;
  if (phase == 0) {
    while (pool.gate_up_->Claim(worker, range)) pool.GateUp(pass, worker, range);
  } else if (phase == 1 && pool.prepares_) {
    while (pool.prepare_->Claim(worker, range)) pool.Prepare(pass, worker, range);
  } else {
    while (pool.down_->Claim(worker, range)) pool.Down(pass, worker, range);
  }
}

// Phase 0: some gate and up rows of one expert.
void ExpertPool::GateUp(const Pass& pass, std::size_t worker, const WorkRange& range) {
  const LayerWeights& layer = *pass.layer;
  const ExpertGroup& group = routing_.groups()[range.group];
  const Plan& plan = plans_[range.group];
  GateUpJob job{};
  job.gate = plan.matrices.gate;
  job.up = plan.matrices.up;
  job.gate_bias = plan.matrices.gate_bias;
  job.up_bias = plan.matrices.up_bias;
  job.bias_step = plan.matrices.bias_step;
  job.activation = layer.activation;
  job.row_begin = range.begin * plan.kernel->unit;
  job.row_end = std::min(range.end * plan.kernel->unit, layer.intermediate);
  job.x = pass.call.x;
  job.tokens = routing_.tokens() + group.begin;
  job.scale = layer.weights_before_input ? routing_.weights() + group.begin : nullptr;
  job.count = group.count();
  job.act = activations_.data() + plan.act;
  job.scratch = workers_[worker].scratch.data();
  job.same_tokens = workers_[worker].prepared == range.group;
  workers_[worker].prepared = range.group;
  if (job.row_end < layer.intermediate) {
    job.after = AheadOf(job.gate, job.row_end);
  } else if (range.group + 1 < plans_.size()) {
    job.after = AheadOf(plans_[range.group + 1].matrices.gate, 0);
  }
  try {
    plan.kernel->gate_up(job);
  } catch (const std::exception& error) {
    throw std::runtime_error(Concat("layer ", pass.call.layer, ", expert ", group.expert,
                                    ": gate and up failed: ", error.what()));
  }
  Beat(worker);
}

// Between the phases, where the format wants it: some pairs' activations, once for all workers.
void ExpertPool::Prepare(const Pass& pass, std::size_t worker, const WorkRange& range) {
  const ExpertGroup& group = routing_.groups()[range.group];
  const Plan& plan = plans_[range.group];
  PrepareJob job{};
  job.down = plan.matrices.down;
  job.act = activations_.data() + plan.act;
  job.count = group.count();
  job.pair_begin = range.begin * plan.kernel->prepare_unit;
  job.pair_end = std::min(range.end * plan.kernel->prepare_unit, job.count);
  job.prepared = activations_.data() + plan.prepared;
  try {
    plan.kernel->prepare(job);
  } catch (const std::exception& error) {
    throw std::runtime_error(Concat("layer ", pass.call.layer, ", expert ", group.expert,
                                    ": preparing activations failed: ", error.what()));
  }
  Beat(worker);
}

// The last phase: some columns of out, all experts' rows for them, added in the order of the
// experts, so that no sum depends on timing.
void ExpertPool::Down(const Pass& pass, std::size_t worker, const WorkRange& range) {
  const std::size_t end = std::min(range.end * down_unit_, pass.layer->hidden);
  const std::size_t fitting = kPartialFloats / pass.call.tokens / down_unit_ * down_unit_;
  const std::size_t step = std::max(fitting, down_unit_);
  for (std::size_t row = range.begin * down_unit_; row < end; row += step) {
    DownRows(pass, worker, row, std::min(row + step, end));
  }
}

void ExpertPool::DownRows(const Pass& pass, std::size_t worker, std::size_t begin,
                          std::size_t end) {
  const ForwardCall& call = pass.call;
  const std::size_t stride = pass.layer->hidden;
  DownJob job{};
  job.row_begin = begin;
  job.row_end = end;
  if (call.tokens < kPartialTokens) {
    for (std::size_t token = 0; token < call.tokens; ++token) {
      if (call.sparse_out && !routing_.Has(token)) continue;
      std::fill(call.out + token * stride + begin, call.out + token * stride + end, 0.0f);
    }
    job.out = call.out;
    job.out_stride = stride;
    AddDown(pass, worker, job);
    return;
  }
  AlignedArray<float>& partial = workers_[worker].partial;
  const std::size_t width = end - begin;
  partial.Reserve(call.tokens * width);
  std::fill_n(partial.data(), call.tokens * width, 0.0f);
  job.out = partial.data();
  job.out_first = begin;
  job.out_stride = width;
  AddDown(pass, worker, job);
  for (std::size_t token = 0; token < call.tokens; ++token) {
    if (call.sparse_out && !routing_.Has(token)) continue;
    std::copy_n(partial.data() + token * width, width, call.out + token * stride + begin);
  }
}

// Adds every expert's share to the rows of `job`.
void ExpertPool::AddDown(const Pass& pass, std::size_t worker, DownJob& job) {
  const LayerWeights& layer = *pass.layer;
  for (std::size_t i = 0; i < plans_.size(); ++i) {
    const ExpertGroup& group = routing_.groups()[i];
    const Plan& plan = plans_[i];
    job.down = plan.matrices.down;
    job.bias = plan.matrices.down_bias;
    job.act = activations_.data() + (plan.kernel->prepare == nullptr ? plan.act : plan.prepared);
    job.tokens = routing_.tokens() + group.begin;
    job.weights = layer.weights_before_input ? routing_.ones() : routing_.weights() + group.begin;
    job.count = group.count();
    job.scratch = workers_[worker].scratch.data();
    if (i + 1 < plans_.size()) {
      job.after = AheadOf(plans_[i + 1].matrices.down, job.row_begin);
    } else {
      // More rows, unless somebody else takes them.
      job.after =
          job.row_end < layer.hidden ? AheadOf(plans_[0].matrices.down, job.row_end) : Ahead{};
    }
    try {
      plan.kernel->down(job);
    } catch (const std::exception& error) {
      throw std::runtime_error(Concat("layer ", pass.call.layer, ", expert ", group.expert,
                                      ": down failed: ", error.what()));
    }
    Beat(worker);
  }
}

void ExpertPool::Beat(std::size_t worker) noexcept {
  // One writer, so no read-modify-write is needed.
  if (worker != 0) return;
  heartbeat_.store(heartbeat_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  if (also_beats_ == nullptr) return;
  const std::atomic_ref<std::uint64_t> word(*also_beats_);
  word.store(word.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace ktd
