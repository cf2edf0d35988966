// Waits for the pool's answer and adds it to what the slots computed.
#include "channel.h"

namespace ktd_device {

struct Sum {
  uint2* out;             // bf16 [rows, hidden]
  const int* num_tokens;  // rows from this one on are padding; null: none is
  int rows;
  int add;  // 1: `out` holds what the slots computed; 0: nothing, it is written completely
};
static_assert(sizeof(Sum) == KTD_SUM_BYTES, "Python and the kernels differ");

constexpr unsigned int kWarp = 32;
constexpr unsigned int kColumns = 4;        // of a part
constexpr unsigned int kParts = 2;          // of a thread that collects
constexpr unsigned int kEagerPolls = 32;    // about 30 us over PCIe
constexpr unsigned int kPollsPerLook = 64;  // at the clock and the heartbeat

__device__ inline unsigned long long Nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

struct Answer {
  unsigned int epoch;
  unsigned int failed;
};

// Both words in one load, for each costs a way over PCIe: they share a cache line, into which the
// pool writes `failed` before `answered`.
__device__ inline Answer Look(const MailboxBox* box) {
  const unsigned long long words =
      LoadAcquire(reinterpret_cast<const unsigned long long*>(&box->answered));
  return {static_cast<unsigned int>(words), static_cast<unsigned int>(words >> 32)};
}

// Called by one thread of a block. Sets the error word when there is no answer to be had.
__device__ void AwaitAnswer(const Channel& channel, unsigned int epoch) {
  unsigned long long began = 0;
  unsigned long long beaten = 0;
  unsigned long long beat = 0;
  for (unsigned int polls = 1;; ++polls) {
    const Answer answer = Look(channel.box);
    if (answer.epoch == epoch) {
      if (answer.failed != 0) Fail(channel, kCallFailed);
      return;
    }
    if (polls > kEagerPolls) __nanosleep(100);
    if (polls % kPollsPerLook != 0) continue;
    if (ErrorOf(channel.state) != kNone) return;
    const unsigned long long now = Nanoseconds();
    const unsigned long long latest = LoadRelaxed(&channel.box->heartbeat);
    if (began == 0) began = now;
    if (beaten == 0 || latest != beat) {
      beat = latest;
      beaten = now;
    }
    if (now - beaten > channel.give_up_ns) return Fail(channel, kPoolSilent);
    if (channel.limit_ns != 0 && now - began > channel.limit_ns) return Fail(channel, kLimit);
  }
}

__device__ inline float Low(unsigned int pair) { return __uint_as_float(pair << 16); }
__device__ inline float High(unsigned int pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two float32 rounded to the nearest bf16, ties to even.
__device__ inline unsigned int Pair(float low, float high) {
  unsigned int pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

constexpr unsigned int kNanPair = 0x7fc07fc0;

__device__ inline int RealRows(const Sum& sum) {
  return sum.num_tokens == nullptr ? sum.rows : min(max(*sum.num_tokens, 0), sum.rows);
}

// Four columns of a row: what is known of them before the answer is there. Four are one load of
// 16 bytes, so that neighbours in a warp read neighbouring bytes: the way over PCIe is paid by the
// request, and one of each half would be twice as many.
struct Part {
  size_t at;
  bool real;  // no padding
  bool ours;  // the pool computes them
  uint2 base;
};

__device__ inline Part PartOf(const Channel& channel, const Sum& sum, bool pending, int tokens,
                              size_t at) {
  const int row = static_cast<int>(at / (channel.hidden / kColumns));
  const bool real = row < tokens;
  const bool ours = pending && real && channel.row_ours[row] != 0;
  uint2 base = {};
  if (ours && sum.add != 0) base = sum.out[at];
  return {at, real, ours, base};
}

__device__ inline void Write(const Channel& channel, const Sum& sum, const Part& part,
                             const float4& answer, bool failed) {
  if (failed && part.real) {
    sum.out[part.at] = {kNanPair, kNanPair};
  } else if (!failed && part.ours) {
    const uint2 base = part.base;
    sum.out[part.at] = {Pair(Low(base.x) + answer.x, High(base.x) + answer.y),
                        Pair(Low(base.y) + answer.z, High(base.y) + answer.w)};
  } else if (sum.add == 0) {
    sum.out[part.at] = {};
  }
}

__device__ inline float4 AnswerTo(const Channel& channel, const Part& part, bool failed) {
  return part.ours && !failed ? LoadRelaxed(&channel.answer[part.at]) : float4{};
}

// Called by one thread of each block of a grid. Only the first asks the host: looks at one line of
// host memory from several blocks come one after the other, about a microsecond each, so the last
// of 16 would see the flag 16 us late (scripts/gpu_host/round_trip.py). It tells the others by
// device memory, the error word before that; what the host wrote is theirs to read by cumulativity.
// That it runs at all while they wait is up to how few they are: a grid that waits is never so
// large that it fills a GPU.
__device__ void AwaitTogether(const Channel& channel, unsigned int epoch) {
  if (blockIdx.x == 0) {
    AwaitAnswer(channel, epoch);
    if (gridDim.x > 1) StoreReleaseOnDevice(&channel.state->awaited, epoch);
    return;
  }
  while (LoadAcquireOnDevice(&channel.state->awaited) != epoch) {
    if (ErrorOf(channel.state) != kNone) return;  // then the first block may not have waited
  }
}

// Two parts for each thread but the last warp's, which waits meanwhile: a thread that first looks
// at its parts would see the flag half a microsecond later. Every block waits, so a grid of many
// would fill the GPU.
__device__ void Collect(const Channel& channel, const Sum& sum) {
  const State state = *channel.state;
  bool failed = state.error != kNone;
  const bool pending = state.pending != 0;
  if (!failed && !pending && sum.add != 0) return;
  const unsigned int threads = blockDim.x - kWarp;
  const size_t first = static_cast<size_t>(blockIdx.x) * threads * kParts + threadIdx.x;
  const size_t end = static_cast<size_t>(sum.rows) * (channel.hidden / kColumns);
  const int tokens = RealRows(sum);
  Part parts[kParts] = {};
  for (unsigned int i = 0; i < kParts; ++i) {
    const size_t at = first + i * threads;
    if (threadIdx.x < threads && at < end) parts[i] = PartOf(channel, sum, pending, tokens, at);
  }
  if (threadIdx.x == threads && pending && !failed) {
    AwaitTogether(channel, state.epoch);
    failed = ErrorOf(channel.state) != kNone;
  }
  failed = __syncthreads_or(failed) != 0;
  if (threadIdx.x >= threads) return;
  float4 answers[kParts];  // all are asked for before the first is used
  for (unsigned int i = 0; i < kParts; ++i) answers[i] = AnswerTo(channel, parts[i], failed);
  for (unsigned int i = 0; i < kParts; ++i) {
    if (first + i * threads < end) Write(channel, sum, parts[i], answers[i], failed);
  }
}

__device__ void Add(const Channel& channel, const Sum& sum) {
  const bool failed = ErrorOf(channel.state) != kNone;
  const bool pending = channel.state->pending != 0;
  if (!failed && !pending && sum.add != 0) return;
  const int tokens = RealRows(sum);
  const size_t end = static_cast<size_t>(sum.rows) * (channel.hidden / kColumns);
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < end;
       at += step) {
    const Part part = PartOf(channel, sum, pending, tokens, at);
    Write(channel, sum, part, AnswerTo(channel, part, failed), failed);
  }
}

}  // namespace ktd_device

// For a few rows: as many threads as there are vectors of eight columns, and a warp a block.
extern "C" __global__ void __launch_bounds__(512 + ktd_device::kWarp)
    ktd_collect(ktd_device::Channel channel, ktd_device::Sum sum) {
  ktd_device::Collect(channel, sum);
}

// For many rows: one thread waits, and a grid of its own adds behind it.
extern "C" __global__ void __launch_bounds__(32) ktd_await(ktd_device::Channel channel) {
  const ktd_device::State state = *channel.state;
  if (threadIdx.x != 0 || state.pending == 0 || state.error != ktd_device::kNone) return;
  ktd_device::AwaitAnswer(channel, state.epoch);
}

extern "C" __global__ void __launch_bounds__(512)
    ktd_add(ktd_device::Channel channel, ktd_device::Sum sum) {
  ktd_device::Add(channel, sum);
}
