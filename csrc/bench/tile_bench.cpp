// What AMX's instructions cost on this host, alone and beside each other, on one core and on all.
//
//   tile_bench
//
// One line for each loop: cycles of the time stamp counter a product (or a load, in the loops that
// only load), the least and some percentiles over samples of 0.2 ms and cores. The last two columns
// are dependent additions a nanosecond right after a sample: about half as many while the core's
// other hyperthread works.
#include <sys/mman.h>
#include <x86intrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu_features.h"
#include "kernels/amx_tile.h"
#include "topology.h"
#include "worker_thread.h"

namespace ktd {
namespace {

constexpr std::size_t kMemory = std::size_t{2} << 20;
constexpr int kSamples = 20;
constexpr double kSampleSeconds = 2e-4;

// Two panels of weights and two blocks of tokens, `steps` tiles each.
struct Tiles {
  const std::uint8_t* weights;
  const std::uint8_t* tokens;
  std::size_t steps;

  const std::uint8_t* Weights(int panel, std::size_t step) const noexcept {
    return weights + (static_cast<std::size_t>(panel) * steps + step) * kTileBytes;
  }
  const std::uint8_t* Tokens(int block, std::size_t step) const noexcept {
    return tokens + (static_cast<std::size_t>(block) * steps + step) * kTileBytes;
  }
};

template <int Additions>
inline std::uint64_t Add(std::uint64_t value) noexcept {
#pragma GCC unroll 40
  for (int i = 0; i < Additions; ++i) asm volatile("add $1, %0" : "+r"(value));
  return value;
}

template <int... Sums>
void Products(const Tiles& tiles) noexcept {
  for (std::size_t s = 0; s < tiles.steps; ++s) (TileDotBf16<Sums, 6, 7>(), ...);
}

template <int Additions>
void SpacedProducts(const Tiles& tiles) noexcept {
  std::uint64_t value = 0;
  const auto one = [&]<int Sum>() noexcept {
    TileDotBf16<Sum, 6, 7>();
    value = Add<Additions>(value);
  };
  for (std::size_t s = 0; s < tiles.steps; ++s) {
    one.template operator()<0>();
    one.template operator()<1>();
    one.template operator()<2>();
    one.template operator()<3>();
    one.template operator()<4>();
    one.template operator()<5>();
  }
}

void Loads(const Tiles& tiles) noexcept {
  for (std::size_t s = 0; s < tiles.steps; ++s) {
    TileLoad<4>(tiles.Weights(0, s), kTileLine);
    TileLoad<6>(tiles.Tokens(0, s), kTileLine);
    TileLoad<5>(tiles.Weights(1, s), kTileLine);
    TileLoad<7>(tiles.Tokens(1, s), kTileLine);
  }
}

void LoadsBesideProducts(const Tiles& tiles) noexcept {
  for (std::size_t s = 0; s < tiles.steps; ++s) {
    TileLoad<1>(tiles.Weights(0, s), kTileLine);
    TileDotBf16<0, 6, 7>();
    TileLoad<2>(tiles.Tokens(0, s), kTileLine);
    TileDotBf16<0, 6, 7>();
    TileLoad<3>(tiles.Weights(1, s), kTileLine);
    TileDotBf16<0, 6, 7>();
    TileLoad<4>(tiles.Tokens(1, s), kTileLine);
    TileDotBf16<0, 6, 7>();
  }
}

void TwoByTwo(const Tiles& tiles) noexcept {
  for (std::size_t s = 0; s < tiles.steps; ++s) {
    TileLoad<4>(tiles.Weights(0, s), kTileLine);
    TileLoad<6>(tiles.Tokens(0, s), kTileLine);
    TileLoad<5>(tiles.Weights(1, s), kTileLine);
    TileDotBf16<0, 4, 6>();
    TileLoad<7>(tiles.Tokens(1, s), kTileLine);
    TileDotBf16<1, 5, 6>();
    TileDotBf16<2, 4, 7>();
    TileDotBf16<3, 5, 7>();
  }
}

struct Loop {
  const char* name;
  void (*run)(const Tiles&) noexcept;
  double products;    // of a step
  std::size_t steps;  // 4 KiB of tiles each, where they are loaded
};

constexpr Loop kLoops[] = {
    {"products into one tile", Products<0, 0, 0, 0, 0, 0>, 6, 100},
    {"products into two tiles in turn", Products<0, 1, 0, 1, 0, 1>, 6, 100},
    {"products into three tiles in turn", Products<0, 1, 2, 0, 1, 2>, 6, 100},
    {"products into six tiles in turn", Products<0, 1, 2, 3, 4, 5>, 6, 100},
    {"the same with 20 additions between", SpacedProducts<20>, 6, 100},
    {"loads, 32 KiB", Loads, 4, 8},
    {"loads, 256 KiB", Loads, 4, 64},
    {"loads beside other products, 32 KiB", LoadsBesideProducts, 4, 8},
    {"2 x 2, 32 KiB", TwoByTwo, 4, 8},
    {"2 x 2, 256 KiB", TwoByTwo, 4, 64},
};

double CyclesPerSecond() {
  const auto start = std::chrono::steady_clock::now();
  const std::uint64_t first = __rdtsc();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return static_cast<double>(__rdtsc() - first) / took.count();
}

struct Samples {
  std::vector<double> cycles;     // a product
  std::vector<double> additions;  // a nanosecond
};

// The pages of `memory` are this thread's own; `together` counts those that are ready.
Samples Measure(const Loop& loop, double hz, std::atomic<std::size_t>& together,
                std::size_t threads) {
  auto* memory = static_cast<std::uint8_t*>(std::aligned_alloc(kMemory, kMemory));
  KTD_CHECK(memory != nullptr, "there is no memory for ", kMemory, " bytes");
  static_cast<void>(madvise(memory, kMemory, MADV_HUGEPAGE));
  std::uint32_t state = 1;  // bf16 of about 0.01, either sign
  for (std::size_t i = 0; i < kMemory; i += sizeof(std::uint16_t)) {
    state = state * 1664525u + 1013904223u;
    const auto value = static_cast<std::uint16_t>(0x3c00u | (state >> 16 & 0x80ffu));
    std::memcpy(memory + i, &value, sizeof value);
  }
  const Tiles tiles{memory, memory + kMemory / 2, loop.steps};
  Samples samples;
  {
    const TileUse use;
    TileLoad<6>(tiles.weights, kTileLine);
    TileLoad<7>(tiles.tokens, kTileLine);
    ++together;
    while (together < threads) _mm_pause();
    for (int sample = -2; sample < kSamples; ++sample) {
      double rounds = 0;
      const std::uint64_t start = __rdtsc();
      std::uint64_t now = start;
      for (; static_cast<double>(now - start) < kSampleSeconds * hz; now = __rdtsc(), ++rounds) {
        loop.run(tiles);
      }
      const double cycles = static_cast<double>(now - start);
      std::uint64_t value = 0;
      for (int i = 0; i < 75; ++i) value = Add<40>(value);
      const double after = static_cast<double>(__rdtsc() - now);
      if (sample < 0) continue;
      samples.cycles.push_back(cycles / (rounds * static_cast<double>(loop.steps) * loop.products));
      samples.additions.push_back(static_cast<double>(value) * hz / after * 1e-9);
    }
  }
  std::free(memory);
  return samples;
}

double At(std::vector<double>& sorted, double share) {
  return sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))];
}

void Print(const Loop& loop, double hz, const std::vector<int>& cpus, std::size_t threads) {
  std::vector<Samples> of(threads);
  std::atomic<std::size_t> together{0};
  std::vector<std::thread> workers;
  for (std::size_t i = 0; i < threads; ++i) {
    workers.emplace_back([&, i] {
      PinThread(pthread_self(), cpus[i]);
      of[i] = Measure(loop, hz, together, threads);
    });
  }
  for (std::thread& worker : workers) worker.join();
  Samples all;
  for (const Samples& one : of) {
    all.cycles.insert(all.cycles.end(), one.cycles.begin(), one.cycles.end());
    all.additions.insert(all.additions.end(), one.additions.begin(), one.additions.end());
  }
  std::sort(all.cycles.begin(), all.cycles.end());
  std::sort(all.additions.begin(), all.additions.end());
  std::printf("%-38s %3zu %7.1f %6.1f %6.1f %6.1f   %5.1f %5.1f\n", loop.name, threads,
              all.cycles.front(), At(all.cycles, 0.1), At(all.cycles, 0.5), At(all.cycles, 0.9),
              At(all.additions, 0.5), At(all.additions, 0.9));
  std::fflush(stdout);
}

}  // namespace

int Main() {
  if ((DetectCpuFeatures() & (kAmxTile | kAmxBf16)) != (kAmxTile | kAmxBf16)) {
    std::fprintf(stderr, "this CPU has no AMX in bf16: there is nothing to measure\n");
    return 1;
  }
  const std::vector<int> cpus = AllowedCpus();
  const double hz = CyclesPerSecond();
  std::printf("time stamp counter: %.3f GHz\n", hz * 1e-9);
  std::printf("%-38s %3s %7s %6s %6s %6s   %s\n", "cycles a product", "", "least", "p10", "median",
              "p90", "additions/ns: median, p90");
  for (const std::size_t threads : {std::size_t{1}, cpus.size()}) {
    for (const Loop& loop : kLoops) Print(loop, hz, cpus, threads);
  }
  return 0;
}

}  // namespace ktd

int main() { return ktd::Main(); }
