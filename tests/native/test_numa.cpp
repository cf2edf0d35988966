// Placement over nodes, on recorded hosts.
#include <algorithm>
#include <numeric>
#include <random>

#include "checker.h"
#include "first_touch.h"
#include "numa.h"
#include "recorded_hosts.h"
#include "topology.h"
#include "work_list.h"

namespace ktd::testing {
namespace {

using Cpus = std::vector<int>;
using Sums = std::vector<std::size_t>;

Cpus Range(int first, int last) {
  Cpus cpus(static_cast<std::size_t>(last - first + 1));
  std::iota(cpus.begin(), cpus.end(), first);
  return cpus;
}

NumaHomes HomesOn(const SysfsTree& tree, const Cpus& allowed) {
  return HomesOf(ReadNumaNodes(tree.path()), OnePerCore(allowed, tree.cpu_path()));
}

}  // namespace

TEST(TwoSocketsShareTheRowsAndMemoryWithoutCoresGetsNone) {
  const SysfsTree tree;
  WriteXeonMax(tree);
  const std::vector<NumaNode> nodes = ReadNumaNodes(tree.path());
  EXPECT(nodes.size() == 4 && nodes[2].cpus.empty() && nodes[2].memory_bytes == 65536ULL << 20);
  EXPECT(nodes[0].memory_bytes == 515489ULL << 20 && nodes[0].distances == (Cpus{10, 21, 13, 23}));
  const NumaHomes homes = HomesOn(tree, Range(0, 207));
  EXPECT(homes.nodes == (Cpus{0, 1}) && homes.shares == (Sums{0, 52, 104}));
  EXPECT(homes.home_of.size() == 104 && homes.home_of[51] == 0 && homes.home_of[52] == 1);
}

TEST(NodesOfPartOfASocketAreHomesOfTheirOwn) {
  const SysfsTree tree;
  WriteEpycNps4(tree);
  const NumaHomes homes = HomesOn(tree, Range(0, 255));
  EXPECT(homes.nodes == Range(0, 7) && homes.home_of.size() == 128);
  EXPECT(homes.shares == (Sums{0, 16, 32, 48, 64, 80, 96, 112, 128}));
  // A rank that has 24 cores of the second socket: 16 of node 5, 8 of node 6.
  const NumaHomes some = HomesOn(tree, Range(80, 103));
  EXPECT(some.nodes == (Cpus{5, 6}) && some.shares == (Sums{0, 16, 24}));
}

TEST(CoresWithoutMemoryReadTheNearestThatHasSome) {
  const SysfsTree tree;
  WriteEpycSparse(tree);
  const NumaHomes homes = HomesOn(tree, Range(0, 127));
  EXPECT(homes.nodes == (Cpus{0, 4}) && homes.shares == (Sums{0, 32, 64}));
  for (std::size_t worker = 0; worker < 64; ++worker) {
    EXPECT(homes.home_of[worker] == worker / 32, "worker ", worker);
  }
}

TEST(AHybridHostHasOneThreadForEachCoreOfEitherKind) {
  const SysfsTree tree;
  WriteHybrid(tree);
  EXPECT(OnePerCore(Range(0, 19), tree.cpu_path()) ==
         (Cpus{0, 2, 4, 6, 8, 10, 12, 13, 14, 15, 16, 17, 18, 19}));
  EXPECT(HomesOn(tree, Range(0, 19)).nodes == (Cpus{0}));
}

TEST(CpusThatAreOfflineHideNoCore) {
  const SysfsTree tree;
  WriteOfflineCpus(tree);
  const Cpus online = ParseCpuList("0-1,3-4,6-12,15");
  EXPECT(OnePerCore(online, tree.cpu_path()) == (Cpus{0, 1, 3, 4, 6, 7, 10}));
  EXPECT(HomesOn(tree, online).shares == (Sums{0, 7}));
}

TEST(AHostThatTellsOfNoNodesIsOneHome) {
  const SysfsTree tree;
  EXPECT(ReadNumaNodes(tree.path()).empty());
  const NumaHomes homes = HomesOf({}, Cpus{0, 1, 5});
  EXPECT(homes.nodes == (Cpus{-1}) && homes.shares == (Sums{0, 3}));
  EXPECT(homes.home_of == (std::vector<std::uint32_t>{0, 0, 0}));
  EXPECT(!HomesOf(ReadNumaNodes("/sys/devices/system"), AllowedCpus()).nodes.empty());
}

TEST(PagesBelongToTheHomeThatMostOfTheirRowsBelongTo) {
  // Two matrices of 8 rows of a kilobyte: home 0 has the first two rows of each, home 1 the rest.
  const Sums shares{0, 1, 4};
  const LayerMatrices matrices{1, 2, 8, 1024};
  EXPECT(PageHomes(matrices, shares, 1024) ==
         (std::vector<std::uint32_t>{0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1}));
  EXPECT(PageHomes(matrices, shares, 4096) == (std::vector<std::uint32_t>{0, 1, 0, 1}));
  EXPECT(PageHomes({1, 1, 5, 1000}, shares, 4096) == (std::vector<std::uint32_t>{1, 1}));
  EXPECT(PageHomes(matrices, Sums{0, 4}, 8192) == (std::vector<std::uint32_t>{0, 0}));
}

// DeepSeek-V3's gate and up in FP8 over two sockets: what a worker computes is where it is.
TEST(WorkersOfAHomeReadTheirOwnPages) {
  const Sums shares{0, 8, 16};
  const LayerMatrices matrices{2, 2, 2048, 7168};
  constexpr std::size_t kPageBytes = std::size_t{2} << 20;
  const std::vector<std::uint32_t> pages = PageHomes(matrices, shares, kPageBytes);
  std::vector<std::uint32_t> node_of(16);
  for (std::uint32_t worker = 0; worker < 16; ++worker) node_of[worker] = worker / 8;
  WorkList list(16);
  const WorkGroup groups[] = {{2048 / 8, 1}, {2048 / 8, 1}};
  list.Reset(groups, {node_of, shares});
  std::size_t local = 0;
  std::size_t all = 0;
  for (std::size_t unit = 0;; ++unit) {  // in turns, as workers of equal speed
    WorkRange range{};
    const std::size_t worker = unit % 16;
    if (!list.Claim(worker, range)) break;
    for (std::size_t row = range.begin * 8; row < range.end * 8; ++row) {
      for (std::size_t part = 0; part < 2; ++part) {
        const std::size_t at =
            ((range.group * 2 + part) * matrices.rows + row) * matrices.row_bytes;
        local += pages[at / kPageBytes] == node_of[worker];
        ++all;
      }
    }
  }
  EXPECT(all == 2 * 2 * 2048 && local > all * 9 / 10, local, " of ", all, " rows are local");
}

TEST(EveryPageIsTouchedAndKeepsItsContents) {
  const NumaHomes two{{0, 1}, {0, 1, 1}, {0, 1, 3}};
  ThreadPool threads(3, {}, std::chrono::milliseconds(0));
  const LayerMatrices matrices{3, 2, 100, 9000};
  std::vector<std::uint8_t> memory(matrices.bytes());
  std::iota(memory.begin(), memory.end(), std::uint8_t{7});
  const std::vector<std::uint8_t> before = memory;
  TouchFirst(threads, two, matrices, memory.data());
  EXPECT(memory == before);
}

}  // namespace ktd::testing
