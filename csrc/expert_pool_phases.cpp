// What a worker does in each phase of a pass; expert_pool.cpp decides who does what.
#include <algorithm>
#include <exception>
#include <stdexcept>

#include "check.h"
#include "expert_pool_pass.h"

namespace ktd {
namespace {

// From so many tokens on, out is put together in memory of the worker's own: a few columns of all
// tokens are then a few pages in its cache, where in out they are as many pages as tokens.
constexpr std::size_t kPartialTokens = 64;
constexpr std::size_t kPartialFloats = std::size_t{2} << 20 >> 2;

}  // namespace

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
