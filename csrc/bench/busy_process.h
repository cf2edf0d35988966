// Another process that takes a core.
#pragma once

#include <sys/types.h>

namespace ktd {

// Spins on `cpu` from its construction to its end, or this process's end.
class BusyProcess {
 public:
  explicit BusyProcess(int cpu);
  ~BusyProcess();
  BusyProcess(const BusyProcess&) = delete;
  BusyProcess& operator=(const BusyProcess&) = delete;

 private:
  pid_t pid_;
};

}  // namespace ktd
