// Files of sysfs, procfs and cgroupfs.
#pragma once

#include <string>

namespace ktd {

// The first 16 KiB of a file, or "" if it cannot be read.
std::string ReadSmallFile(const std::string& path);

}  // namespace ktd
