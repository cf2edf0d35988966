// Calls that run on a thread of their own, in order, each with a ticket for its result.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>

namespace ktd {

class TicketQueue {
 public:
  using Work = std::function<std::uint64_t()>;

  // Starts the thread, named "ktd-submit", with all signals blocked and on `cpu` if it can be.
  explicit TicketQueue(int cpu);

  // Finishes what was submitted, then joins. Not to be called in a forked child.
  ~TicketQueue();
  TicketQueue(const TicketQueue&) = delete;
  TicketQueue& operator=(const TicketQueue&) = delete;

  std::uint64_t Submit(Work work);

  // Waits for the ticket's work and returns its value or rethrows its exception, which also ends
  // the ticket. CheckError for a ticket that was never given or has ended.
  std::uint64_t Wait(std::uint64_t ticket);

 private:
  struct Result {
    std::uint64_t value = 0;
    std::exception_ptr failure;
  };
  struct Item {
    std::uint64_t ticket;
    Work work;
  };

  void Loop();

  std::mutex mutex_;
  std::condition_variable submitted_;
  std::condition_variable finished_;
  std::deque<Item> items_;
  // A ticket is here from Submit to Wait; empty until its work has finished.
  std::unordered_map<std::uint64_t, std::optional<Result>> results_;
  std::uint64_t next_ticket_ = 1;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace ktd
