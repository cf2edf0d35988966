#include "expert_run.h"

namespace ktd::testing {
namespace {

std::uint8_t* Aligned(std::vector<std::uint8_t>& bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  return bytes.data() + (64 - address % 64) % 64;
}

}  // namespace

const std::uint8_t* ForDown(const ExpertKernel& kernel, const Matrix& down, const std::uint8_t* act,
                            std::size_t count, std::vector<std::uint8_t>& storage) {
  if (kernel.prepare == nullptr) return act;
  storage.assign(kernel.prepared_bytes(down.columns, count) + 64, 0xff);
  PrepareJob job{};
  job.down = down;
  job.act = act;
  job.count = count;
  job.prepared = Aligned(storage);
  // In two jobs, as two workers would.
  const std::size_t half = count / 2 / kernel.prepare_unit * kernel.prepare_unit;
  job.pair_begin = half;
  job.pair_end = count;
  kernel.prepare(job);
  job.pair_begin = 0;
  job.pair_end = half;
  kernel.prepare(job);
  return Aligned(storage);
}

Result RunExpert(const ExpertKernel& kernel, const LayerWeights& layer, const std::vector<Bf16>& x,
                 std::size_t row_split, std::size_t column_split) {
  const std::size_t count = x.size() / layer.hidden;
  std::vector<std::int32_t> tokens(count);
  for (std::size_t t = 0; t < count; ++t) tokens[t] = static_cast<std::int32_t>(t);
  const std::vector<float> weights(count, 1.0f);
  std::vector<std::uint8_t> act(kernel.act_bytes(layer.intermediate, count) + 64);
  std::vector<std::uint8_t> scratch(kernel.scratch_bytes(layer.hidden, layer.intermediate) + 64);
  Result result{{}, std::vector<float>(count * layer.hidden)};
  const ExpertMatrices m = MatricesOf(layer, 0);
  GateUpJob gate_up{};
  gate_up.gate = m.gate;
  gate_up.up = m.up;
  gate_up.gate_bias = m.gate_bias;
  gate_up.up_bias = m.up_bias;
  gate_up.bias_step = m.bias_step;
  gate_up.activation = layer.activation;
  gate_up.x = x.data();
  gate_up.tokens = tokens.data();
  gate_up.count = count;
  gate_up.act = Aligned(act);
  gate_up.scratch = Aligned(scratch);
  gate_up.row_end = row_split;
  kernel.gate_up(gate_up);
  gate_up.row_begin = row_split;
  gate_up.row_end = layer.intermediate;
  if (row_split < layer.intermediate) kernel.gate_up(gate_up);
  for (std::size_t p = 0; p < count; ++p) {
    for (std::size_t i = 0; i < layer.intermediate; ++i) {
      result.act.push_back(ReadAct(LayoutOf(kernel), Aligned(act), layer.intermediate, p, i));
    }
  }
  std::vector<std::uint8_t> prepared;
  DownJob down{};
  down.down = m.down;
  down.bias = m.down_bias;
  down.act = ForDown(kernel, m.down, Aligned(act), count, prepared);
  down.tokens = tokens.data();
  down.weights = weights.data();
  down.count = count;
  down.out = result.out.data();
  down.out_stride = layer.hidden;
  down.scratch = Aligned(scratch);
  down.row_end = column_split;
  kernel.down(down);
  down.row_begin = column_split;
  down.row_end = layer.hidden;
  if (column_split < layer.hidden) kernel.down(down);
  return result;
}

}  // namespace ktd::testing
