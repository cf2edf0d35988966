// What a pool's newest calls took, in memory that another process may read while they are added.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace ktd {

// Times are of std::chrono::steady_clock, which all processes of a host share.
struct CallRecord {
  std::uint64_t began;  // nanoseconds
  std::uint64_t ended;
  std::uint64_t bytes;   // of the distinct experts' weights
  std::uint64_t tokens;  // rows of the call
};

// A ring: a word that counts the records ever added, then the records. One writer.
class CallLog {
 public:
  // `words` is aligned, outlives this object, and holds 1 + 4 * records; not in use while records
  // is 0.
  CallLog() = default;
  CallLog(std::uint64_t* words, std::size_t records) noexcept
      : count_(words), records_(reinterpret_cast<CallRecord*>(words + 1)), size_(records) {}

  bool in_use() const noexcept { return size_ > 0; }

  void Add(const CallRecord& record) noexcept {
    const std::atomic_ref<std::uint64_t> count(*count_);
    const std::uint64_t index = count.load(std::memory_order_relaxed);
    records_[index % size_] = record;
    // Behind the record: whoever sees the count sees it.
    count.store(index + 1, std::memory_order_release);
  }

 private:
  std::uint64_t* count_ = nullptr;
  CallRecord* records_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace ktd
