#include "worker_thread.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "check.h"

namespace ktd {
namespace {

// A new thread inherits the mask of the one that starts it. Faults of its own stay: the kernel
// kills for one that is blocked, past every handler that would say why (lost_pages.h,
// faulthandler).
class AllSignalsBlocked {
 public:
  AllSignalsBlocked() noexcept {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGBUS, SIGSEGV, SIGILL, SIGFPE}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~AllSignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  AllSignalsBlocked(const AllSignalsBlocked&) = delete;
  AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace

std::thread StartWorkerThread(const std::string& name, std::function<void()> body) {
  const AllSignalsBlocked blocked;
  std::thread thread(std::move(body));
  pthread_setname_np(thread.native_handle(), name.c_str());
  return thread;
}

void PinThread(pthread_t thread, int cpu) {
  const auto bits = static_cast<std::size_t>(cpu) + 1;
  const std::size_t bytes = CPU_ALLOC_SIZE(bits);
  cpu_set_t* set = CPU_ALLOC(bits);
  if (set == nullptr) throw std::bad_alloc();
  CPU_ZERO_S(bytes, set);
  CPU_SET_S(static_cast<std::size_t>(cpu), bytes, set);
  const int error = pthread_setaffinity_np(thread, bytes, set);
  CPU_FREE(set);
  if (error != 0) {
    throw std::runtime_error(
        Concat("a pool thread cannot be pinned to CPU ", cpu, ": ", std::strerror(error)));
  }
}

}  // namespace ktd
