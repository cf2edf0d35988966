// The two products for many tokens of an expert, on AMX. Weight rows are the A tiles, tokens the B
// tiles: C is [16 rows, 16 tokens], so the activations of two rows are two values of the next
// product's inputs and come out in the order in which its B tiles want them.
//
// A format is a type in an anonymous namespace of its kernel file:
//
//   kStep                               inputs that a tile holds: 32 (bf16) or 64 (int8)
//   Fill(m, row, rows, panel)           16 rows of weights as A tiles, tile after tile along the
//                                       inputs; rows from `rows` on and inputs beyond m.columns 0
//   Stream(m, row)                      the bytes that Fill of that row reads, for prefetching
//   TokensBytes(columns)                of 16 prepared tokens: B tiles, then what Finish needs
//   Pack(m, x, count, tokens)           x[0..count) are rows of bf16; the rest of the 16 is zero
//   Repack(m, act, count, tokens)       the same from 16 tokens of activations as gate_up leaves
//                                       them; kRepacks false: they are B tiles already
//   Multiply<Blocks>(...)               see Bf16Tiles in amx_bf16_tiles.h
#pragma once

#include "amx_tile.h"
#include "avx512_math.h"
#include "bf16.h"
#include "moe_job.h"

namespace ktd {
namespace {

constexpr std::size_t kTokenBlock = 16;
constexpr std::size_t kPanelRows = 16;
// Tokens and weights that stay in L2 beside each other (2 MiB on the Xeons that have AMX).
constexpr std::size_t kTokensInL2 = std::size_t{1280} << 10;
constexpr std::size_t kPanelsInL2 = std::size_t{512} << 10;
// Prepared tokens that a worker keeps for its next range of the same expert's rows.
constexpr std::size_t kTokensKept = std::size_t{4} << 20;

constexpr std::size_t Smaller(std::size_t a, std::size_t b) noexcept { return a < b ? a : b; }
constexpr std::size_t Larger(std::size_t a, std::size_t b) noexcept { return a < b ? b : a; }
constexpr std::size_t Blocks(std::size_t n, std::size_t block) noexcept {
  return (n + block - 1) / block;
}

// Activations between the products: for every 16 tokens the B tiles of bf16 pairs along the
// intermediate size.
constexpr std::size_t ActBlockBytes(std::size_t intermediate) noexcept {
  return Blocks(intermediate, 32) * kTileBytes;
}
inline std::size_t AmxActBytes(std::size_t intermediate, std::size_t count) noexcept {
  return Blocks(count, kTokenBlock) * ActBlockBytes(intermediate);
}

// Bytes to be prefetched, in small pieces beside the products.
class Prefetch {
 public:
  Prefetch() = default;
  Prefetch(const std::uint8_t* begin, std::size_t bytes) noexcept
      : next_(reinterpret_cast<std::uintptr_t>(begin)), end_(next_ + bytes) {}

  std::size_t lines() const noexcept { return (end_ - next_ + 63) / 64; }
  void Advance(std::size_t lines) noexcept {
    for (; lines > 0 && next_ < end_; --lines, next_ += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next_), _MM_HINT_T1);
    }
  }

 private:
  std::uintptr_t next_ = 0;
  std::uintptr_t end_ = 0;
};

struct Range {
  const std::uint8_t* begin;
  std::size_t bytes;
};

inline __mmask16 First16(std::size_t n) noexcept {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1u);
}

// Rows and columns of 16 x 16 floats change places.
inline void Transpose(__m512 (&v)[16]) noexcept {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    v[i + 1] =
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    v[i + 2] = _mm512_castpd_ps(
        _mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    v[i + 3] = _mm512_castpd_ps(
        _mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    v[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Sums of 16 rows x 16 tokens, row by row.
struct alignas(64) Sums {
  float at[kPanelRows][kTokenBlock];
};

// --- first product ----------------------------------------------------------------------------

// Blocks of tokens of `bytes` altogether, an even number.
template <class F>
inline std::size_t TokenBlocksIn(std::size_t bytes, std::size_t columns) noexcept {
  return Larger(2, bytes / F::TokensBytes(columns) / 2 * 2);
}

// `blocks` in as few parts of at most `most` as there can be, all about the same: an even number.
inline std::size_t EvenPart(std::size_t blocks, std::size_t most) noexcept {
  return Blocks(Blocks(blocks, Blocks(blocks, most)), 2) * 2;
}

// Gate and up sums of 16 rows and 16 tokens become activations in B tile order.
inline void FinishGateUp(const GateUpJob& job, std::size_t row, std::size_t token, const Sums& gate,
                         const Sums& up, std::uint8_t* act) noexcept {
  const std::size_t rows = Smaller(kPanelRows, job.gate.rows - row);
  const __mmask16 mask = First16(job.count - token);
  const __m512 scale =
      job.scale == nullptr ? _mm512_set1_ps(1.0f) : _mm512_maskz_loadu_ps(mask, job.scale + token);
  std::uint8_t* line = act + (row / 32) * kTileBytes + (row % 32) / 2 * kTileLine;
  const auto narrow = [&](std::size_t r) noexcept {
    if (r >= rows) return _mm512_setzero_si512();
    __m512 g = _mm512_load_ps(gate.at[r]);
    __m512 u = _mm512_load_ps(up.at[r]);
    if (job.gate_bias != nullptr) {
      const std::size_t at = (row + r) * job.bias_step;
      g = _mm512_add_ps(g, _mm512_set1_ps(Widen(job.gate_bias[at])));
      u = _mm512_add_ps(u, _mm512_set1_ps(Widen(job.up_bias[at])));
    }
    if (job.scale != nullptr) {
      g = _mm512_mul_ps(g, scale);
      u = _mm512_mul_ps(u, scale);
    }
    return _mm512_maskz_mov_epi32(mask, NarrowSixteen(Activated(job.activation, g, u)));
  };
  for (std::size_t r = 0; r < kPanelRows; r += 2, line += kTileLine) {
    const __m512i odd = _mm512_slli_epi32(narrow(r + 1), 16);
    _mm512_store_si512(line, _mm512_or_si512(narrow(r), odd));
  }
  // The tile's second half has no rows: it must not hold what was there before.
  if (row % 32 == 0 && row + kPanelRows >= job.gate.rows) {
    std::memset(line, 0, kTileBytes / 2);
  }
}

template <class F>
inline void PackTokens(const GateUpJob& job, std::size_t first, std::uint8_t* tokens) noexcept {
  const Bf16* x[kTokenBlock];
  const std::size_t count = Smaller(kTokenBlock, job.count - first);
  for (std::size_t t = 0; t < count; ++t) {
    x[t] = job.x + static_cast<std::size_t>(job.tokens[first + t]) * job.gate.columns;
  }
  F::Pack(job.gate, x, count, tokens);
}

// Gate and up of rows [row_begin, row_end) for blocks [begin, end) of tokens, prepared from
// `tokens` on.
template <class F>
inline void GateUpBlocks(const GateUpJob& job, std::size_t begin, std::size_t end,
                         const std::uint8_t* tokens) noexcept {
  const std::size_t steps = Blocks(job.gate.columns, F::kStep);
  const std::size_t token_bytes = F::TokensBytes(job.gate.columns);
  const std::size_t act_bytes = ActBlockBytes(job.gate.rows);
  std::uint8_t* gate = job.scratch;
  std::uint8_t* up = gate + steps * kTileBytes;
  for (std::size_t row = job.row_begin; row < job.row_end; row += kPanelRows) {
    const std::size_t rows = Smaller(kPanelRows, job.gate.rows - row);
    F::Fill(job.gate, row, rows, gate);
    F::Fill(job.up, row, rows, up);
    Prefetch ahead_gate;
    Prefetch ahead_up;
    if (row + kPanelRows >= job.row_end) {
      if (job.after.weights != nullptr) {
        ahead_gate = Prefetch(job.after.weights, F::Stream(job.gate, job.row_begin).bytes);
      }
    } else {
      const Range next_gate = F::Stream(job.gate, row + kPanelRows);
      const Range next_up = F::Stream(job.up, row + kPanelRows);
      ahead_gate = Prefetch(next_gate.begin, next_gate.bytes);
      ahead_up = Prefetch(next_up.begin, next_up.bytes);
    }
    const std::size_t turns = Blocks(end - begin, 2) * steps;
    const std::size_t gate_lines = Blocks(ahead_gate.lines(), turns);
    const std::size_t up_lines = Blocks(ahead_up.lines(), turns);
    const auto beside = [&]() noexcept {
      ahead_gate.Advance(gate_lines);
      ahead_up.Advance(up_lines);
    };
    for (std::size_t b = begin; b < end; b += 2) {
      Sums sums[4];  // gate and up of the first block, then of the second
      const std::uint8_t* x = tokens + (b - begin) * token_bytes;
      const bool two = b + 1 < end;
      if (two) {
        F::template Multiply<2>(job.gate, job.up, row, row, gate, up, x, token_bytes, beside, sums);
      } else {
        F::template Multiply<1>(job.gate, job.up, row, row, gate, up, x, token_bytes, beside, sums);
      }
      for (std::size_t i = 0; i < (two ? 2 : 1); ++i) {
        FinishGateUp(job, row, (b + i) * kTokenBlock, sums[2 * i], sums[2 * i + 1],
                     job.act + (b + i) * act_bytes);
      }
    }
  }
}

template <class F>
inline void GateUpAmx(const GateUpJob& job) noexcept {
  if (job.count == 0) return;
  [[maybe_unused]] const TileUse use;
  const std::size_t columns = job.gate.columns;
  const std::size_t token_bytes = F::TokensBytes(columns);
  const std::size_t blocks = Blocks(job.count, kTokenBlock);
  const std::size_t kept = TokenBlocksIn<F>(kTokensKept, columns);
  const std::size_t slab = EvenPart(blocks, TokenBlocksIn<F>(kTokensInL2, columns));
  std::uint8_t* tokens = job.scratch + 2 * Blocks(columns, F::kStep) * kTileBytes;
  const bool prepared = job.same_tokens && blocks <= kept;
  for (std::size_t first = 0; first < blocks; first += kept) {
    const std::size_t last = Smaller(first + kept, blocks);
    for (std::size_t b = first; b < last && !prepared; ++b) {
      PackTokens<F>(job, b * kTokenBlock, tokens + (b - first) * token_bytes);
    }
    for (std::size_t b = first; b < last; b += slab) {
      GateUpBlocks<F>(job, b, Smaller(b + slab, last), tokens + (b - first) * token_bytes);
    }
  }
}

// --- second product ---------------------------------------------------------------------------

// out += weight * (sums + bias) for up to 32 rows (two panels) and 16 tokens.
inline void FinishDown(const DownJob& job, std::size_t row, std::size_t end, std::size_t token,
                       const Sums& sums) noexcept {
  const std::size_t count = Smaller(kTokenBlock, job.count - token);
  const __mmask16 mask = First16(end - row);
  __m512 bias = _mm512_setzero_ps();
  if (job.bias != nullptr) {
    const __m256i narrow = _mm256_maskz_loadu_epi16(mask, job.bias + row);
    bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
  }
  __m512 v[16];
  for (std::size_t r = 0; r < kPanelRows; ++r) v[r] = _mm512_load_ps(sums.at[r]);
  Transpose(v);
  for (std::size_t t = 0; t < count; ++t) {
    const auto to = static_cast<std::size_t>(job.tokens[token + t]);
    float* out = job.out + to * job.out_stride + (row - job.out_first);
    const __m512 weight = _mm512_set1_ps(job.weights[token + t]);
    const __m512 before = _mm512_maskz_loadu_ps(mask, out);
    const __m512 sum = _mm512_add_ps(v[t], bias);
    _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(weight, sum, before));
  }
}

// The lines that FinishDown will add to: tokens come in no order that hardware could foresee.
inline void PrefetchOut(const DownJob& job, std::size_t row, std::size_t token,
                        std::size_t most) noexcept {
  const std::size_t end = Smaller(token + most, job.count);
  for (; token < end; ++token) {
    const auto to = static_cast<std::size_t>(job.tokens[token]);
    const float* out = job.out + to * job.out_stride + (row - job.out_first);
    _mm_prefetch(reinterpret_cast<const char*>(out), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(out + kPanelRows), _MM_HINT_T0);
  }
}

// Of 16 tokens, as the second product reads them.
template <class F>
constexpr std::size_t PreparedBlockBytes(std::size_t intermediate) noexcept {
  return F::kRepacks ? F::TokensBytes(intermediate) : ActBlockBytes(intermediate);
}

template <class F>
inline void DownAmx(const DownJob& job) noexcept {
  if (job.count == 0) return;
  [[maybe_unused]] const TileUse use;
  const std::size_t steps = Blocks(job.down.columns, F::kStep);
  const std::size_t panel_bytes = steps * kTileBytes;
  const std::size_t token_bytes = PreparedBlockBytes<F>(job.down.columns);
  const std::size_t blocks = Blocks(job.count, kTokenBlock);
  const std::size_t rows_at_once = Larger(2, kPanelsInL2 / panel_bytes / 2 * 2) * kPanelRows;
  std::uint8_t* panels = job.scratch;
  for (std::size_t begin = job.row_begin; begin < job.row_end; begin += rows_at_once) {
    const std::size_t end = Smaller(begin + rows_at_once, job.row_end);
    const std::size_t count = Blocks(end - begin, 2 * kPanelRows) * 2;
    for (std::size_t p = 0; p < count; ++p) {
      const std::size_t row = begin + p * kPanelRows;
      const std::size_t rows = row < end ? Smaller(kPanelRows, end - row) : 0;
      F::Fill(job.down, row, rows, panels + p * panel_bytes);
    }
    // What this worker reads next: more rows, or the same rows of the next expert.
    Prefetch next_weights;
    if (end < job.row_end) {
      const Range next = F::Stream(job.down, end);
      next_weights = Prefetch(next.begin, next.bytes);
    } else if (job.after.weights != nullptr) {
      const Range here = F::Stream(job.down, begin);
      next_weights = Prefetch(job.after.weights, here.bytes * count);
    }
    const std::size_t weight_lines =
        Blocks(next_weights.lines(), Blocks(blocks, 2) * (count / 2) * steps);
    for (std::size_t b = 0; b < blocks; b += 2) {
      const bool two = b + 1 < blocks;
      const std::uint8_t* x = job.act + b * token_bytes;
      Prefetch ahead(x + 2 * token_bytes,
                     b + 2 < blocks ? Smaller(2, blocks - b - 2) * token_bytes : 0);
      const std::size_t lines = Blocks(ahead.lines(), count / 2 * steps);
      const auto beside = [&]() noexcept {
        ahead.Advance(lines);
        next_weights.Advance(weight_lines);
      };
      for (std::size_t p = 0; p < count; p += 2) {
        const std::size_t row = begin + p * kPanelRows;
        const std::uint8_t* panel = panels + p * panel_bytes;
        PrefetchOut(job, row, b * kTokenBlock, two ? 2 * kTokenBlock : kTokenBlock);
        Sums sums[4];  // both panels of the first block, then of the second
        if (two) {
          F::template Multiply<2>(job.down, job.down, row, row + kPanelRows, panel,
                                  panel + panel_bytes, x, token_bytes, beside, sums);
        } else {
          F::template Multiply<1>(job.down, job.down, row, row + kPanelRows, panel,
                                  panel + panel_bytes, x, token_bytes, beside, sums);
        }
        for (std::size_t i = 0; i < (two ? 4 : 2); ++i) {
          const std::size_t at = row + i % 2 * kPanelRows;
          if (at < end) FinishDown(job, at, end, (b + i / 2) * kTokenBlock, sums[i]);
        }
      }
    }
  }
}

template <class F>
inline std::size_t AmxScratchBytes(std::size_t hidden, std::size_t intermediate) noexcept {
  const std::size_t gate_up = 2 * Blocks(hidden, F::kStep) * kTileBytes +
                              TokenBlocksIn<F>(kTokensKept, hidden) * F::TokensBytes(hidden);
  const std::size_t panel = Blocks(intermediate, F::kStep) * kTileBytes;
  const std::size_t down = Larger(2, kPanelsInL2 / panel / 2 * 2) * panel;
  return Larger(gate_up, down);
}

template <class F>
inline void PrepareAmx(const PrepareJob& job) noexcept {
  const std::size_t act_bytes = ActBlockBytes(job.down.columns);
  const std::size_t token_bytes = F::TokensBytes(job.down.columns);
  for (std::size_t p = job.pair_begin; p < job.pair_end; p += kTokenBlock) {
    const std::size_t b = p / kTokenBlock;
    F::Repack(job.down, job.act + b * act_bytes, Smaller(kTokenBlock, job.count - p),
              job.prepared + b * token_bytes);
  }
}

template <class F>
inline std::size_t AmxPreparedBytes(std::size_t intermediate, std::size_t count) noexcept {
  return Blocks(count, kTokenBlock) * F::TokensBytes(intermediate);
}

template <class F>
constexpr ExpertKernel AmxKernel() noexcept {
  if constexpr (F::kRepacks) {
    return {GateUpAmx<F>,   DownAmx<F>,    AmxActBytes,         AmxScratchBytes<F>,
            2 * kPanelRows, PrepareAmx<F>, AmxPreparedBytes<F>, kTokenBlock};
  } else {
    return {GateUpAmx<F>, DownAmx<F>, AmxActBytes, AmxScratchBytes<F>, 2 * kPanelRows};
  }
}

}  // namespace
}  // namespace ktd
