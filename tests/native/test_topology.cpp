// Cores and siblings, on sysfs trees written here.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "checker.h"
#include "topology.h"

namespace ktd::testing {
namespace {

namespace fs = std::filesystem;

// A folder like /sys/devices/system/cpu that is removed at the end.
class SysfsTree {
 public:
  SysfsTree() {
    std::string pattern = (fs::temp_directory_path() / "ktd-topology-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw Failure("no temporary folder");
    root_ = pattern;
  }
  ~SysfsTree() { fs::remove_all(root_); }
  SysfsTree(const SysfsTree&) = delete;
  SysfsTree& operator=(const SysfsTree&) = delete;

  void Siblings(int cpu, const std::string& list) {
    const fs::path folder = root_ / Concat("cpu", cpu) / "topology";
    fs::create_directories(folder);
    std::ofstream(folder / "thread_siblings_list") << list << "\n";
  }
  std::string path() const { return root_.string(); }

 private:
  fs::path root_;
};

using Cpus = std::vector<int>;

}  // namespace

TEST(SiblingsOfACoreCountOnce) {
  SysfsTree tree;
  for (const int cpu : {0, 1, 2, 3}) tree.Siblings(cpu, Concat(cpu % 2, ",", cpu % 2 + 2));
  EXPECT(OnePerCore({0, 1, 2, 3}, tree.path()) == (Cpus{0, 1}));
  EXPECT(OnePerCore({1, 2, 3}, tree.path()) == (Cpus{1, 2}));
}

TEST(ASiblingThatMayNotBeUsedDoesNotHideItsCore) {
  SysfsTree tree;
  tree.Siblings(4, "4-5");
  tree.Siblings(5, "4-5");
  EXPECT(OnePerCore({5}, tree.path()) == (Cpus{5}));
}

TEST(CpusWithoutTopologyAreCores) {
  const SysfsTree tree;
  EXPECT(OnePerCore({0, 1, 7}, tree.path()) == (Cpus{0, 1, 7}));
}

TEST(CpuListsAreReadAsTheKernelWritesThem) {
  EXPECT(ParseCpuList("0-3,8,10-11\n") == (Cpus{0, 1, 2, 3, 8, 10, 11}));
  EXPECT(ParseCpuList("\n").empty());
}

TEST(OtherTextIsRefusedWithItself) {
  for (const char* text : {"a", "1-", "1,,2", "-1", "1-2-3"}) {
    const std::string message = MessageOf<CheckError>([text] { ParseCpuList(text); });
    EXPECT(Contains(message, "no CPU number"), text, ": ", message);
  }
}

TEST(ThisProcessMayUseACpu) { EXPECT(!AllowedCpus().empty()); }

}  // namespace ktd::testing
