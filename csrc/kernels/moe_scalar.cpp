// The naive twin: what the other kernels are tested against, and what runs where nothing else can.
#include <cmath>

#include "bf16.h"
#include "moe_job.h"

namespace ktd {
namespace {

float Dot(const Bf16* a, const Bf16* b, std::size_t n) noexcept {
  float sum = 0.0f;
  for (std::size_t i = 0; i < n; ++i) sum += Widen(a[i]) * Widen(b[i]);
  return sum;
}

}  // namespace

void GateUpScalar(const GateUpJob& job) noexcept {
  for (std::size_t row = job.row_begin; row < job.row_end; ++row) {
    for (std::size_t p = 0; p < job.count; ++p) {
      const Bf16* x = job.x + static_cast<std::size_t>(job.tokens[p]) * job.hidden;
      const float gate = Dot(job.gate + row * job.hidden, x, job.hidden);
      const float up = Dot(job.up + row * job.hidden, x, job.hidden);
      job.act[p * job.act_stride + row] = Narrow(gate / (1.0f + std::exp(-gate)) * up);
    }
  }
}

void DownScalar(const DownJob& job) noexcept {
  for (std::size_t row = job.row_begin; row < job.row_end; ++row) {
    for (std::size_t p = 0; p < job.count; ++p) {
      const Bf16* act = job.act + p * job.act_stride;
      const float sum = Dot(job.down + row * job.intermediate, act, job.intermediate);
      job.out[static_cast<std::size_t>(job.tokens[p]) * job.out_stride + row] +=
          job.weights[p] * sum;
    }
  }
}

}  // namespace ktd
