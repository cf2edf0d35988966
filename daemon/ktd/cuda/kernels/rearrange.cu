// Lays experts out otherwise: each four bits of the result are four bits of the source, or fixed.
namespace ktd_device {

struct Moves {
  const unsigned char* source;      // [rows, pitch]
  unsigned int* out;                // [rows, words]
  const int4* places;               // [words, 2]: where in a row eight nibbles come from; -1: fixed
  const unsigned int* fixed;        // [words]: what is fixed, else zeros
  unsigned long long source_pitch;  // bytes
  unsigned int words;
  int rows;
};
static_assert(sizeof(Moves) == KTD_MOVES_BYTES, "Python and the kernels differ");

// One load decides nothing for the next, so all eight of a word are on their way at once.
__device__ inline unsigned int Nibble(const unsigned char* row, int place, unsigned int to) {
  if (place < 0) return 0;
  return (row[place >> 1] >> ((place & 1) * 4) & 15u) << to;
}

}  // namespace ktd_device

// A thread has a word of every row: it reads its places once.
extern "C" __global__ void __launch_bounds__(256) ktd_rearrange(ktd_device::Moves moves) {
  using ktd_device::Nibble;
  const unsigned int word = blockIdx.x * blockDim.x + threadIdx.x;
  if (word >= moves.words) return;
  const int4 low = moves.places[2 * static_cast<size_t>(word)];
  const int4 high = moves.places[2 * static_cast<size_t>(word) + 1];
  const unsigned int fixed = moves.fixed[word];
  for (int i = 0; i < moves.rows; ++i) {
    const unsigned char* row = moves.source + i * moves.source_pitch;
    moves.out[i * static_cast<size_t>(moves.words) + word] =
        fixed | Nibble(row, low.x, 0) | Nibble(row, low.y, 4) | Nibble(row, low.z, 8) |
        Nibble(row, low.w, 12) | Nibble(row, high.x, 16) | Nibble(row, high.y, 20) |
        Nibble(row, high.z, 24) | Nibble(row, high.w, 28);
  }
}
