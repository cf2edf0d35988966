#include "ticket_queue.h"

#include <utility>

#include "check.h"
#include "worker_thread.h"

namespace ktd {

TicketQueue::TicketQueue(int cpu) {
  thread_ = StartWorkerThread("ktd-submit", [this] { Loop(); });
  PinThread(thread_, cpu);
}

TicketQueue::~TicketQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  submitted_.notify_one();
  thread_.join();
}

std::uint64_t TicketQueue::Submit(Work work) {
  std::uint64_t ticket = 0;
  {
    const std::lock_guard lock(mutex_);
    ticket = next_ticket_++;
    results_.emplace(ticket, std::nullopt);
    items_.push_back({ticket, std::move(work)});
  }
  submitted_.notify_one();
  return ticket;
}

std::uint64_t TicketQueue::Wait(std::uint64_t ticket) {
  std::unique_lock lock(mutex_);
  const auto known = results_.find(ticket);
  KTD_CHECK(known != results_.end(), "ticket ", ticket,
            " is not outstanding: it was never given, or has been waited for");
  finished_.wait(lock, [&] {
    const auto now = results_.find(ticket);
    return now == results_.end() || now->second.has_value();
  });
  const auto done = results_.find(ticket);
  KTD_CHECK(done != results_.end(), "ticket ", ticket, " was waited for by another thread");
  const Result result = *std::exchange(done->second, std::nullopt);
  results_.erase(done);
  lock.unlock();
  finished_.notify_all();  // another thread may wait for the same ticket in vain
  if (result.failure) std::rethrow_exception(result.failure);
  return result.value;
}

void TicketQueue::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    submitted_.wait(lock, [&] { return stopping_ || !items_.empty(); });
    if (items_.empty()) return;
    Item item = std::move(items_.front());
    items_.pop_front();
    lock.unlock();
    Result result;
    try {
      result.value = item.work();
    } catch (...) {
      result.failure = std::current_exception();
    }
    item.work = nullptr;
    lock.lock();
    results_[item.ticket] = std::move(result);
    finished_.notify_all();
  }
}

}  // namespace ktd
