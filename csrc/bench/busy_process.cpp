#include "busy_process.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

namespace ktd {

BusyProcess::BusyProcess(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pid_ = fork();
  KTD_CHECK(pid_ >= 0, "no process can be started");
  if (pid_ > 0) return;
  // Only system calls from here on: the other threads' locks are held for ever.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (sched_setaffinity(0, sizeof(set), &set) != 0) _exit(1);
  while (true) __asm__ volatile("");
}

BusyProcess::~BusyProcess() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

}  // namespace ktd
