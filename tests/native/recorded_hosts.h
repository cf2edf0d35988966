// sysfs trees of real machines, written from what their owners published.
#pragma once

#include <string>
#include <vector>

namespace ktd::testing {

// A folder like /sys/devices/system that is removed at the end.
class SysfsTree {
 public:
  SysfsTree();
  ~SysfsTree();
  SysfsTree(const SysfsTree&) = delete;
  SysfsTree& operator=(const SysfsTree&) = delete;

  // All lists in the kernel's format, "0-3,8".
  void Online(const std::string& cpus) const;
  void Core(const std::string& cpus) const;  // hardware threads of one core
  void Node(int id, const std::string& cpus, std::size_t mib, const std::string& distances) const;
  void OnlineNodes(const std::string& nodes) const;

  const std::string& path() const { return root_; }
  std::string cpu_path() const { return root_ + "/cpu"; }

 private:
  std::string root_;
};

// Two Xeon Max 9470C in flat mode: 52 cores of two threads each, and each socket's HBM as a node
// without cores. `numactl --hardware` in Argonne's documentation of Aurora
// (argonne-lcf/user-guides).
void WriteXeonMax(const SysfsTree& tree);

// Two EPYC 7763 with NPS4: eight nodes of 16 cores, two threads each. `lscpu` and `numactl -H` in
// NERSC's documentation of Perlmutter's CPU nodes.
void WriteEpycNps4(const SysfsTree& tree);

// Two EPYC 7601 with memory on one node of each socket, six nodes without any. `numactl -H` in a
// report to linux-mm of 2019.
void WriteEpycSparse(const SysfsTree& tree);

// A Core i7-1370P: six cores of two threads, eight of one. hwloc's recording
// 20em64t-hybrid-1p6c2t+2ca4co1t (tests/hwloc/linux in open-mpi/hwloc).
void WriteHybrid(const SysfsTree& tree);

// Four Xeon sockets of two cores of two threads, CPUs 2, 5, 13 and 14 offline. hwloc's recording
// 16em64t-4s2c2t-offlines.
void WriteOfflineCpus(const SysfsTree& tree);

}  // namespace ktd::testing
