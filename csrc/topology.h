// Which CPUs a pool may use, and which of them are cores of their own.
#pragma once

#include <string>
#include <vector>

namespace ktd {

// The CPUs that this thread may run on (sched_getaffinity), ascending.
std::vector<int> AllowedCpus();

// Of `allowed`, the first of each physical core, in their order. A CPU whose topology `sysfs`
// (for example "/sys/devices/system/cpu") does not tell counts as a core.
std::vector<int> OnePerCore(const std::vector<int>& allowed, const std::string& sysfs);

// Reads the kernel's list format, "0-3,8,10-11". Throws CheckError on anything else.
std::vector<int> ParseCpuList(const std::string& text);

}  // namespace ktd
