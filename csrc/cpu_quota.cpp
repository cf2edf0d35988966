#include "cpu_quota.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string_view>

#include "check.h"
#include "small_file.h"

namespace ktd {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// Reads a number from the front of `text`; 0 if there is none ("max", "-1", nothing).
double Number(std::string_view& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return 0;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  return static_cast<double>(value);
}

double Ratio(double quota, double period) {
  return quota > 0 && period > 0 ? quota / period : kNoLimit;
}

double LimitOf(const std::string& folder, bool version_2) {
  if (version_2) {
    const std::string text = ReadSmallFile(folder + "/cpu.max");
    std::string_view rest(text);
    const double quota = Number(rest);
    return Ratio(quota, Number(rest));
  }
  const std::string quota = ReadSmallFile(folder + "/cpu.cfs_quota_us");
  const std::string period = ReadSmallFile(folder + "/cpu.cfs_period_us");
  std::string_view first(quota);
  std::string_view second(period);
  return Ratio(Number(first), Number(second));
}

// The least limit of a group and those it is in.
double LimitUpFrom(const std::string& mount, std::string_view group, bool version_2) {
  double least = kNoLimit;
  while (true) {
    while (!group.empty() && group.back() == '/') group.remove_suffix(1);
    least = std::min(least, LimitOf(Concat(mount, group), version_2));
    if (group.empty()) return least;
    const std::size_t slash = group.rfind('/');
    group = group.substr(0, slash == std::string_view::npos ? 0 : slash);
  }
}

bool HasController(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const std::string_view item = list.substr(0, list.find(','));
    if (item == name) return true;
    list.remove_prefix(std::min(item.size() + 1, list.size()));
  }
  return false;
}

}  // namespace

double CpuQuota(const std::string& groups, const std::string& root) {
  double least = kNoLimit;
  std::string_view rest(groups);
  while (!rest.empty()) {  // "0::/a/b", or "3:cpu,cpuacct:/a/b"
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string_view group = line.substr(second + 1);
    if (controllers.empty()) {
      least = std::min(least, LimitUpFrom(root, group, true));
    } else if (HasController(controllers, "cpu")) {
      least = std::min(least, LimitUpFrom(Concat(root, "/", controllers), group, false));
    }
  }
  return least;
}

double CpuQuota() { return CpuQuota(ReadSmallFile("/proc/self/cgroup"), "/sys/fs/cgroup"); }

}  // namespace ktd
