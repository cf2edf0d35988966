#include "recorded_hosts.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "checker.h"
#include "topology.h"

namespace ktd::testing {
namespace {

namespace fs = std::filesystem;

void Write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text << "\n";
}

// Cores whose threads are `step` CPUs apart.
void WriteCores(const SysfsTree& tree, int first, int count, int step) {
  for (int cpu = first; cpu < first + count; ++cpu) tree.Core(Concat(cpu, ",", cpu + step));
}

}  // namespace

SysfsTree::SysfsTree() {
  std::string pattern = (fs::temp_directory_path() / "ktd-sysfs-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw Failure("no temporary folder");
  root_ = pattern;
}

SysfsTree::~SysfsTree() { fs::remove_all(root_); }

void SysfsTree::Online(const std::string& cpus) const { Write(root_ + "/cpu/online", cpus); }

void SysfsTree::Core(const std::string& cpus) const {
  for (const int cpu : ParseCpuList(cpus)) {
    Write(Concat(root_, "/cpu/cpu", cpu, "/topology/thread_siblings_list"), cpus);
  }
}

void SysfsTree::Node(int id, const std::string& cpus, std::size_t mib,
                     const std::string& distances) const {
  const std::string folder = Concat(root_, "/node/node", id);
  Write(folder + "/cpulist", cpus);
  Write(folder + "/meminfo", Concat("Node ", id, " MemTotal:       ", mib << 10, " kB\nNode ", id,
                                    " MemFree:        1024 kB"));
  Write(folder + "/distance", distances);
}

void SysfsTree::OnlineNodes(const std::string& nodes) const {
  Write(root_ + "/node/online", nodes);
}

void WriteXeonMax(const SysfsTree& tree) {
  tree.Online("0-207");
  WriteCores(tree, 0, 104, 104);
  tree.OnlineNodes("0-3");
  tree.Node(0, "0-51,104-155", 515489, "10 21 13 23");
  tree.Node(1, "52-103,156-207", 515028, "21 10 23 13");
  tree.Node(2, "", 65536, "13 23 10 23");
  tree.Node(3, "", 65536, "23 13 23 10");
}

void WriteEpycNps4(const SysfsTree& tree) {
  tree.Online("0-255");
  WriteCores(tree, 0, 128, 128);
  tree.OnlineNodes("0-7");
  for (int node = 0; node < 8; ++node) {
    std::string distances;
    for (int other = 0; other < 8; ++other) {
      const int distance = node == other ? 10 : node / 4 == other / 4 ? 12 : 32;
      distances += Concat(other == 0 ? "" : " ", distance);
    }
    const int cpu = 16 * node;
    tree.Node(node, Concat(cpu, "-", cpu + 15, ",", cpu + 128, "-", cpu + 143),
              node == 0 ? 64306 : 64502, distances);
  }
}

void WriteEpycSparse(const SysfsTree& tree) {
  tree.Online("0-127");
  WriteCores(tree, 0, 64, 64);
  tree.OnlineNodes("0-7");
  for (int node = 0; node < 8; ++node) {
    std::string distances;
    for (int other = 0; other < 8; ++other) {
      const int distance = node == other ? 10 : node / 4 == other / 4 ? 16 : 32;
      distances += Concat(other == 0 ? "" : " ", distance);
    }
    const int cpu = 8 * node;
    const std::size_t mib = node == 0 ? 20028 : node == 4 ? 31391 : 0;
    tree.Node(node, Concat(cpu, "-", cpu + 7, ",", cpu + 64, "-", cpu + 71), mib, distances);
  }
}

void WriteHybrid(const SysfsTree& tree) {
  tree.Online("0-19");
  for (int cpu = 0; cpu < 12; cpu += 2) tree.Core(Concat(cpu, "-", cpu + 1));
  for (int cpu = 12; cpu < 20; ++cpu) tree.Core(Concat(cpu));
  tree.OnlineNodes("0");
  tree.Node(0, "0-19", 31 << 10, "10");
}

void WriteOfflineCpus(const SysfsTree& tree) {
  tree.Online("0-1,3-4,6-12,15");
  for (const char* core : {"0,8", "4,12", "1,9", "3,11", "7,15", "6", "10"}) tree.Core(core);
  tree.OnlineNodes("0");
  tree.Node(0, "0-1,3-4,6-12,15", 16 << 10, "10");
}

}  // namespace ktd::testing
