#include <cmath>
#include <filesystem>
#include <fstream>

#include "checker.h"
#include "cpu_quota.h"
#include "recorded_hosts.h"

namespace ktd::testing {
namespace {

void Write(const std::string& root, const std::string& name, const std::string& text) {
  const std::filesystem::path path = root + name;
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text << "\n";
}

}  // namespace

TEST(TheTightestGroupOnTheWayToTheRootCounts) {
  const SysfsTree tree;
  Write(tree.path(), "/cpu.max", "max 100000");
  Write(tree.path(), "/system.slice/cpu.max", "800000 100000");
  Write(tree.path(), "/system.slice/ktd.service/cpu.max", "max 100000");
  EXPECT(CpuQuota("0::/system.slice/ktd.service\n", tree.path()) == 8.0);
  Write(tree.path(), "/system.slice/ktd.service/cpu.max", "150000 100000");
  EXPECT(CpuQuota("0::/system.slice/ktd.service\n", tree.path()) == 1.5);
  EXPECT(CpuQuota("0::/system.slice\n", tree.path()) == 8.0);
}

TEST(AGroupOfVersionOneIsReadFromItsController) {
  const SysfsTree tree;
  Write(tree.path(), "/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "400000");
  Write(tree.path(), "/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000");
  Write(tree.path(), "/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  Write(tree.path(), "/cpu,cpuacct/cpu.cfs_period_us", "100000");
  const std::string groups = "5:cpuset:/\n3:cpu,cpuacct:/docker/abc\n0::/\n";
  EXPECT(CpuQuota(groups, tree.path()) == 4.0);
}

TEST(WithoutALimitThereIsNone) {
  const SysfsTree tree;
  for (const char* groups : {"", "0::/\n", "0::/gone/away\n", "nonsense\n"}) {
    EXPECT(std::isinf(CpuQuota(groups, tree.path())), groups);
  }
  EXPECT(CpuQuota() > 0);
}

}  // namespace ktd::testing
