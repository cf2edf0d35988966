#include "topology.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <set>
#include <string_view>

#include "check.h"
#include "small_file.h"

namespace ktd {
namespace {

int ParseCpu(std::string_view text) {
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  KTD_CHECK(error == std::errc() && end == text.data() + text.size() && value >= 0, "'", text,
            "' is no CPU number of a CPU list such as 0-3,8");
  return value;
}

}  // namespace

std::vector<int> ParseCpuList(const std::string& text) {
  std::vector<int> cpus;
  std::string_view rest(text);
  while (!rest.empty() && (rest.back() == '\n' || rest.back() == ' ')) rest.remove_suffix(1);
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(item.size() + 1, rest.size()));
    const std::size_t dash = item.find('-');
    const int first = ParseCpu(item.substr(0, dash));
    const int last = dash == std::string_view::npos ? first : ParseCpu(item.substr(dash + 1));
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

std::vector<int> AllowedCpus() {
  // The kernel refuses a mask smaller than its own, so grow until it is content.
  for (int cpus = 1024; cpus <= 1 << 20; cpus *= 4) {
    cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(cpus));
    if (set == nullptr) throw std::bad_alloc();
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(cpus));
    const int result = sched_getaffinity(0, bytes, set);
    const int error = errno;
    std::vector<int> allowed;
    for (int cpu = 0; result == 0 && cpu < cpus; ++cpu) {
      if (CPU_ISSET_S(static_cast<std::size_t>(cpu), bytes, set)) allowed.push_back(cpu);
    }
    CPU_FREE(set);
    if (result == 0) return allowed;
    KTD_CHECK(error == EINVAL, "the CPUs of this process cannot be read: ", std::strerror(error));
  }
  KTD_CHECK(false, "the CPUs of this process cannot be read: the kernel's mask is too long");
  return {};
}

std::vector<int> OnePerCore(const std::vector<int>& allowed, const std::string& sysfs) {
  std::set<int> taken;  // CPUs of cores that are in the result
  std::vector<int> cores;
  for (const int cpu : allowed) {
    if (taken.contains(cpu)) continue;
    cores.push_back(cpu);
    taken.insert(cpu);
    const std::string path = Concat(sysfs, "/cpu", cpu, "/topology/thread_siblings_list");
    for (const int sibling : ParseCpuList(ReadSmallFile(path))) taken.insert(sibling);
  }
  return cores;
}

}  // namespace ktd
