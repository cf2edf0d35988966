#include "slot_copies.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "check.h"

namespace ktd {
namespace {

class ByThread final : public CopyEngine {
 public:
  void Copy(const SlotCopy& piece) override {
    std::memcpy(reinterpret_cast<void*>(piece.to), reinterpret_cast<const void*>(piece.from),
                piece.size);
  }
};

}  // namespace

std::unique_ptr<CopyEngine> HostCopies() { return std::make_unique<ByThread>(); }

SlotCopies::SlotCopies(std::vector<SlotCopy> copies, std::unique_ptr<CopyEngine> engine,
                       std::size_t piece)
    : copies_(std::move(copies)), engine_(std::move(engine)), piece_(piece) {
  KTD_CHECK(piece_ > 0, "a piece has at least one byte");
  std::erase_if(copies_, [](const SlotCopy& copy) { return copy.size == 0; });
}

std::size_t SlotCopies::Run(std::chrono::nanoseconds turn, double rate) {
  const Clock::time_point end = Clock::now() + turn;
  std::size_t copied = 0;
  while (next_ < copies_.size()) {
    if (rate > 0) {
      engine_->Flush();
      std::this_thread::sleep_until(std::min(due_, end));
    }
    const Clock::time_point now = Clock::now();
    if (now >= end && (copied > 0 || now < due_)) break;
    const SlotCopy& copy = copies_[next_];
    const std::size_t size = std::min(piece_, copy.size - at_);
    engine_->Copy({copy.to + at_, copy.from + at_, size});
    copied += size;
    at_ += size;
    if (at_ == copy.size) {
      ++next_;
      at_ = 0;
    }
    if (rate > 0) {
      const std::chrono::duration<double> takes(static_cast<double>(size) / rate);
      due_ = now + std::chrono::duration_cast<Clock::duration>(takes);
    }
  }
  engine_->Flush();
  if (next_ == copies_.size()) std::this_thread::sleep_until(std::min(due_, end));
  return copied;
}

}  // namespace ktd
