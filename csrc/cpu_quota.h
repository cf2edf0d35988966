// How much CPU time the control groups of this process give it.
#pragma once

#include <string>

namespace ktd {

// CPUs' worth of time, the least of all groups from the process's own to the root: cpu.max (version
// 2), or cpu.cfs_quota_us (version 1). Infinite if there is no limit. `groups` is the text of
// /proc/self/cgroup, `root` where they are mounted, for example "/sys/fs/cgroup".
double CpuQuota(const std::string& groups, const std::string& root);

// That of this process.
double CpuQuota();

}  // namespace ktd
