#include "numa.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>

#include "check.h"
#include "small_file.h"
#include "topology.h"
#include "work_list.h"

namespace ktd {
namespace {

// "Node 0 MemTotal:       65801584 kB", among other lines.
std::uint64_t MemTotal(const std::string& meminfo) {
  const std::string_view text(meminfo);
  const std::size_t at = text.find("MemTotal:");
  if (at == std::string_view::npos) return 0;
  const std::size_t digits = text.find_first_of("0123456789", at);
  std::uint64_t kib = 0;
  if (digits != std::string_view::npos) {
    std::from_chars(text.data() + digits, text.data() + text.size(), kib);
  }
  return kib << 10;
}

// "10 21 17 28"
std::vector<int> Numbers(const std::string& text) {
  std::vector<int> numbers;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    int value = 0;
    const auto [behind, error] = std::from_chars(at, end, value);
    if (error == std::errc()) numbers.push_back(value);
    at = error == std::errc() ? behind : at + 1;
  }
  return numbers;
}

// The node in `nodes` that `cpu` is on, or their number.
std::size_t NodeOf(std::span<const NumaNode> nodes, int cpu) {
  for (std::size_t node = 0; node < nodes.size(); ++node) {
    if (std::find(nodes[node].cpus.begin(), nodes[node].cpus.end(), cpu) !=
        nodes[node].cpus.end()) {
      return node;
    }
  }
  return nodes.size();
}

// The nearest of the nodes with memory and cores; with neither, any with memory; or `node` itself.
std::size_t NearestMemory(std::span<const NumaNode> nodes, std::size_t node) {
  std::size_t nearest = node;
  int least = std::numeric_limits<int>::max();
  for (const bool with_cores : {true, false}) {
    for (std::size_t other = 0; other < nodes.size(); ++other) {
      if (nodes[other].memory_bytes == 0 || nodes[other].cpus.empty() == with_cores) continue;
      const std::vector<int>& distances = nodes[node].distances;
      const int distance = other < distances.size() ? distances[other] : 255;
      if (distance >= least) continue;
      least = distance;
      nearest = other;
    }
    if (nearest != node) break;
  }
  return nearest;
}

}  // namespace

std::vector<NumaNode> ReadNumaNodes(const std::string& root) {
  std::vector<NumaNode> nodes;
  for (const int id : ParseCpuList(ReadSmallFile(root + "/node/online"))) {
    const std::string folder = Concat(root, "/node/node", id);
    nodes.push_back({id, ParseCpuList(ReadSmallFile(folder + "/cpulist")),
                     MemTotal(ReadSmallFile(folder + "/meminfo")),
                     Numbers(ReadSmallFile(folder + "/distance"))});
  }
  return nodes;
}

NumaHomes HomesOf(std::span<const NumaNode> nodes, std::span<const int> worker_cpus) {
  std::vector<std::size_t> wanted;  // by worker: its home's place in `nodes`
  std::vector<std::size_t> count(nodes.size() + 1, 0);
  for (const int cpu : worker_cpus) {
    std::size_t node = NodeOf(nodes, cpu);
    if (node < nodes.size() && nodes[node].memory_bytes == 0) node = NearestMemory(nodes, node);
    wanted.push_back(node);
    ++count[node];
  }
  NumaHomes homes{{}, {}, {0}};
  std::vector<std::uint32_t> place(nodes.size() + 1, 0);
  for (std::size_t node = 0; node <= nodes.size(); ++node) {
    if (count[node] == 0) continue;
    place[node] = static_cast<std::uint32_t>(homes.nodes.size());
    homes.nodes.push_back(node < nodes.size() ? nodes[node].id : -1);
    homes.shares.push_back(homes.shares.back() + count[node]);
  }
  for (const std::size_t node : wanted) homes.home_of.push_back(place[node]);
  return homes;
}

std::vector<std::uint32_t> PageHomes(const LayerMatrices& matrices,
                                     std::span<const std::size_t> shares, std::size_t page_bytes) {
  const std::size_t bytes = matrices.bytes();
  const std::size_t homes = shares.size() - 1;
  std::vector<std::uint32_t> pages((bytes + page_bytes - 1) / page_bytes, 0);
  if (homes == 1) return pages;
  std::vector<std::size_t> owned(homes, 0);  // bytes of the page that is being filled
  std::size_t page = 0;
  std::size_t at = 0;
  const auto finish = [&] {
    pages[page++] =
        static_cast<std::uint32_t>(std::max_element(owned.begin(), owned.end()) - owned.begin());
    std::fill(owned.begin(), owned.end(), 0);
  };
  for (std::size_t matrix = 0; matrix < matrices.experts * matrices.parts; ++matrix) {
    for (std::size_t home = 0; home < homes; ++home) {
      const std::size_t rows = FirstUnitOf(shares, home + 1, matrices.rows);
      const std::size_t end = (matrix * matrices.rows + rows) * matrices.row_bytes;
      while (at < end) {
        const std::size_t stop = std::min(end, (page + 1) * page_bytes);
        owned[home] += stop - at;
        at = stop;
        if (at == (page + 1) * page_bytes) finish();
      }
    }
  }
  if (page < pages.size()) finish();
  return pages;
}

}  // namespace ktd
