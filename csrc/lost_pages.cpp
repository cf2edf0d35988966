#include "lost_pages.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <utility>

#include "check.h"

namespace ktd {
namespace {

struct Mapping {
  std::uintptr_t begin;
  std::uintptr_t end;
  std::string report;
  std::string text;
  const Mapping* next;
};

// Never freed: the handler may look at any time.
std::atomic<const Mapping*> first{nullptr};
struct sigaction before;

// Async-signal-safe; nothing can be done about a report that cannot be written.
void Report(const Mapping& mapping) noexcept {
  const int file =
      open(mapping.report.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (file < 0) return;
  std::size_t written = 0;
  while (written < mapping.text.size()) {
    const ssize_t count = write(file, mapping.text.data() + written, mapping.text.size() - written);
    if (count <= 0) break;
    written += static_cast<std::size_t>(count);
  }
  close(file);
}

// Whoever comes first reports; a thread that goes on before that is done ends the process too
// early.
std::atomic<bool> claimed{false};
std::atomic<bool> reported{false};

void OnBusError(int signal, siginfo_t* info, void*) {
  const int error = errno;
  if (claimed.exchange(true)) {
    while (!reported.load(std::memory_order_acquire)) sched_yield();
  } else {
    const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
    for (const Mapping* m = first.load(std::memory_order_acquire); m != nullptr; m = m->next) {
      if (address < m->begin || address >= m->end) continue;
      Report(*m);
      break;
    }
    // The access is repeated, and ends as it did before somebody watched.
    sigaction(signal, &before, nullptr);
    reported.store(true, std::memory_order_release);
  }
  errno = error;
}

}  // namespace

void WatchMapping(const void* address, std::size_t size, std::string report, std::string text) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  const Mapping* head = first.load(std::memory_order_relaxed);
  first.store(new Mapping{begin, begin + size, std::move(report), std::move(text), head},
              std::memory_order_release);
  if (head != nullptr) return;
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  KTD_CHECK(sigaction(SIGBUS, &action, &before) == 0, "SIGBUS cannot be watched");
}

}  // namespace ktd
