// Divides one layer's routing between slots and the pool, and publishes the pool's share.
#include "channel.h"

namespace ktd_device {

struct Routing {
  const void* ids;       // Id [rows, top_k], -1: nothing
  const float* weights;  // [rows, top_k]
  const uint4* x;        // bf16 [rows, hidden]
  const int* table;      // [num_experts]: the slot that computes an expert, or what else; -1: CPU
  const int* resident;   // the same as it is counted: not a slot for this step alone
  // [num_experts, 2] (slot, CPU), grown by one per pair: for rows before first_decode_row, and from
  // it on.
  unsigned long long* counters;
  unsigned long long* decode_counters;
  const int* num_tokens;  // rows from this one on are padding; null: none is
  int* slots;             // out, [rows, top_k]: -1 where no slot computes
  short* seen;            // out, [rows, seen_width]: the ids as they came; null: nobody asks
  int layer;              // the pool's handle; negative: the layer has no CPU path
  int rows;
  int top_k;
  int num_experts;
  int first_decode_row;
  int map_padding;  // 1: rows of padding get their slots, for a runner that takes no -1
  int seen_width;   // at least top_k
  int deferred;     // experts of a token that the pool may answer one call late
};
static_assert(sizeof(Routing) == KTD_ROUTING_BYTES, "Python and the kernels differ");

__device__ inline int RealRows(const Routing& routing) {
  if (routing.num_tokens == nullptr) return routing.rows;
  return min(max(*routing.num_tokens, 0), routing.rows);
}

// One pair's slot is written, its id and weight are published. True if the pool computes it.
template <class Id>
__device__ bool SplitPair(const Channel& channel, const Routing& routing,
                          unsigned long long* counters, int pair, bool publish) {
  const Id id = static_cast<const Id*>(routing.ids)[pair];
  int slot = -1;
  bool ours = false;
  if (id >= routing.num_experts || id < -1) {
    Fail(channel, kBadExpert);
  } else if (id >= 0) {
    slot = routing.table[id];
    ours = slot < 0;
    atomicAdd(&counters[2 * id + (routing.resident[id] < 0 ? 1 : 0)], 1ull);
  }
  routing.slots[pair] = ours ? -1 : slot;
  if (publish) {
    channel.ids[pair] = ours ? static_cast<int>(id) : -1;
    channel.weights[pair] = routing.weights[pair];
  }
  return ours;
}

template <class Id>
__device__ int SlotOfPadding(const Routing& routing, int pair) {
  if (routing.map_padding == 0) return -1;
  const Id id = static_cast<const Id*>(routing.ids)[pair];
  return id >= 0 && id < routing.num_experts ? routing.table[id] : 0;
}

// Called by one thread of every block when all of the block's writes are done; the last of them
// raises the flag, if the pool has a row to compute.
__device__ void Publish(const Channel& channel, const Routing& routing, int tokens, bool rows) {
  State* state = channel.state;
  unsigned int arrived = rows ? kRows : 0;
  if (gridDim.x > 1) {
    __threadfence_system();
    const unsigned int mine = 1 + arrived;
    arrived = atomicAdd(&state->arrived, mine) + mine;
    if (arrived % kRows != gridDim.x) return;
    state->arrived = 0;
    __threadfence();
  }
  const bool call = arrived >= kRows && ErrorOf(state) == kNone;
  state->pending = call ? 1 : 0;
  if (!call) return;
  const unsigned int epoch = state->epoch + 1;
  state->epoch = epoch;
  channel.box->layer = static_cast<unsigned int>(routing.layer);
  channel.box->tokens = static_cast<unsigned int>(tokens);
  channel.box->top_k = static_cast<unsigned int>(routing.top_k);
  channel.box->deferred = static_cast<unsigned int>(routing.deferred);
  StoreRelease(&channel.box->epoch, epoch);
}

// Blocks take rows in turn.
template <class Id>
__device__ void Split(const Channel& channel, const Routing& routing) {
  const int tokens = RealRows(routing);
  // After an error the pool may still be at work on the buffers.
  const bool publish = routing.layer >= 0 && ErrorOf(channel.state) == kNone;
  const unsigned int row_vectors = channel.hidden / 8;
  bool any = false;
  for (int row = static_cast<int>(blockIdx.x); row < routing.rows;
       row += static_cast<int>(gridDim.x)) {
    const int first = row * routing.top_k;
    if (row >= tokens) {
      for (int k = static_cast<int>(threadIdx.x); k < routing.top_k;
           k += static_cast<int>(blockDim.x)) {
        routing.slots[first + k] = SlotOfPadding<Id>(routing, first + k);
      }
      if (threadIdx.x == 0) channel.row_ours[row] = 0;
      continue;
    }
    // Read before it is known whether it is wanted: two dependent loads stand before that.
    const uint4* x = routing.x + static_cast<size_t>(row) * row_vectors;
    uint4 vector = {};
    if (publish && threadIdx.x < row_vectors) vector = x[threadIdx.x];
    unsigned long long* counters =
        row < routing.first_decode_row ? routing.counters : routing.decode_counters;
    // Read by all before the barrier behind which it is written.
    const bool late = routing.layer >= 0 && channel.row_late[row] != 0;
    bool ours = false;
    for (int k = static_cast<int>(threadIdx.x); k < routing.top_k;
         k += static_cast<int>(blockDim.x)) {
      ours |= SplitPair<Id>(channel, routing, counters, first + k, publish);
      if (routing.seen != nullptr) {
        routing.seen[static_cast<size_t>(row) * routing.seen_width + k] =
            static_cast<short>(static_cast<const Id*>(routing.ids)[first + k]);
      }
    }
    ours = __syncthreads_or(ours || channel.always != 0) != 0;
    if (threadIdx.x == 0) {
      channel.row_ours[row] = ours || late ? 1 : 0;
      if (routing.layer >= 0) channel.row_late[row] = ours && routing.deferred > 0 ? 1 : 0;
    }
    ours |= late;
    any |= ours;
    if (!ours || !publish) continue;
    uint4* published = channel.x + static_cast<size_t>(row) * row_vectors;
    if (threadIdx.x < row_vectors) published[threadIdx.x] = vector;
    for (unsigned int i = threadIdx.x + blockDim.x; i < row_vectors; i += blockDim.x) {
      published[i] = x[i];
    }
  }
  if (routing.layer < 0) return;
  __syncthreads();
  if (threadIdx.x == 0) Publish(channel, routing, tokens, any);
}

}  // namespace ktd_device

extern "C" __global__ void __launch_bounds__(256)
    ktd_split_int32(ktd_device::Channel channel, ktd_device::Routing routing) {
  ktd_device::Split<int>(channel, routing);
}

extern "C" __global__ void __launch_bounds__(256)
    ktd_split_int64(ktd_device::Channel channel, ktd_device::Routing routing) {
  ktd_device::Split<long long>(channel, routing);
}
