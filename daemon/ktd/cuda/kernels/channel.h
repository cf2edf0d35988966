// What the kernels of a channel share: its memory, and loads and stores that the host can see.
#pragma once

#include "mailbox_box.h"

namespace ktd_device {

// In device memory, so that a replayed graph goes on where the last one ended. Zero at first.
struct alignas(16) State {
  unsigned int epoch;    // of the last call that was published
  unsigned int pending;  // 1: the layer at hand was published and waits for the pool
  unsigned int error;    // of Error; stays, and every later layer returns at once
  unsigned int arrived;  // blocks of the split that have finished, and kRows for each with a row of
                         // the pool's
  unsigned int awaited;  // epoch of the last call whose answer, or the lack of it, is known
};
static_assert(sizeof(State) == KTD_STATE_BYTES, "Python and the kernels differ");

// One channel's memory. Everything but `state` and the rows' marks is the host's, at its address
// for the device. Python fills it (ktd.cuda.arguments.Channel) and checks its size.
struct Channel {
  State* state;
  unsigned char* row_ours;  // [max_tokens]: the pool computes something of this row
  unsigned char* row_late;  // [max_tokens]: the last layer with a CPU path may have put some off
  MailboxBox* box;
  unsigned int* told;             // the error word, where the host reads it
  uint4* x;                       // bf16 [max_tokens, hidden]
  int* ids;                       // [max_tokens, top_k]
  float* weights;                 // [max_tokens, top_k]
  const float4* answer;           // float32 [max_tokens, hidden]
  unsigned long long give_up_ns;  // a heartbeat that stands still for so long is a pool that died
  unsigned long long limit_ns;    // no wait is longer than this; 0: a living pool is waited for
  unsigned int hidden;
  unsigned int always;  // 1: rows and flag are published though the pool has nothing to compute
};
static_assert(sizeof(Channel) == KTD_CHANNEL_BYTES, "Python and the kernels differ");

// As ktd.cuda.layer_channel.ChannelError names them.
enum Error : unsigned int { kNone, kPoolSilent, kCallFailed, kBadExpert, kLimit };

constexpr unsigned int kRows = 1u << 16;  // so a split has fewer blocks than this

__device__ inline unsigned long long LoadAcquire(const unsigned long long* word) {
  unsigned long long value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
}

__device__ inline unsigned long long LoadRelaxed(const unsigned long long* word) {
  unsigned long long value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
}

__device__ inline float4 LoadRelaxed(const float4* from) {
  float4 value;
  asm volatile("ld.relaxed.sys.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "l"(from)
               : "memory");
  return value;
}

__device__ inline unsigned int LoadAcquireOnDevice(const unsigned int* word) {
  unsigned int value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ inline void StoreReleaseOnDevice(unsigned int* word, unsigned int value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" : : "l"(word), "r"(value) : "memory");
}

__device__ inline void StoreRelaxed(unsigned int* word, unsigned int value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" : : "l"(word), "r"(value) : "memory");
}

__device__ inline void StoreRelease(unsigned int* word, unsigned int value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(word), "r"(value) : "memory");
}

// Another block of this launch may have written it.
__device__ inline unsigned int ErrorOf(const State* state) {
  return *static_cast<const volatile unsigned int*>(&state->error);
}

// The first error stays. The host reads its copy when the step has finished, and so does the host
// process of every other rank, whose own GPU has had this layer's NaN by then: the word is to be
// there before that goes out.
__device__ inline void Fail(const Channel& channel, Error error) {
  if (atomicCAS(&channel.state->error, kNone, error) != kNone) return;
  StoreRelaxed(channel.told, error);
  __threadfence_system();
}

}  // namespace ktd_device
