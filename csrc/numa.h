// NUMA nodes: which there are, whose memory each worker should read, and who touches which page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ktd {

struct NumaNode {
  int id;
  std::vector<int> cpus;       // online ones, ascending; none for memory without cores
  std::uint64_t memory_bytes;  // 0 for cores without memory
  std::vector<int> distances;  // to every node of the list, in its order; none if not told
};

// The online nodes of `root` (for example "/sys/devices/system"), by number; none if the kernel
// tells of none.
std::vector<NumaNode> ReadNumaNodes(const std::string& root);

// Homes are the nodes whose memory workers read; a worker's is its own, or, if that has no memory,
// the nearest that has. Memory without cores is nobody's home. There is always at least one.
struct NumaHomes {
  std::vector<int> nodes;              // by home: number of its node, or -1 if not known
  std::vector<std::uint32_t> home_of;  // by worker
  std::vector<std::size_t> shares;     // homes + 1 sums of their workers: of each matrix's rows
};
NumaHomes HomesOf(std::span<const NumaNode> nodes, std::span<const int> worker_cpus);

// Matrices of one layer as they lie in memory: `experts` times `parts` (gate and up: two) matrices
// of `rows` rows. Each is divided by rows among the homes, so that a worker computes rows of its
// own home.
struct LayerMatrices {
  std::size_t experts;
  std::size_t parts;
  std::size_t rows;
  std::size_t row_bytes;

  std::size_t bytes() const noexcept { return experts * parts * rows * row_bytes; }
};

// For each page of `page_bytes` of the matrices, which begin at a page, the home that most of its
// bytes belong to. Who touches a page first decides on which node it is.
std::vector<std::uint32_t> PageHomes(const LayerMatrices& matrices,
                                     std::span<const std::size_t> shares, std::size_t page_bytes);

}  // namespace ktd
