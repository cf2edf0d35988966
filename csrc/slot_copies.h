// Copies of a batch of experts into their slots, done piece by piece at a limited rate.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace ktd {

// `size` bytes from one address to another.
struct SlotCopy {
  std::uintptr_t to;
  std::uintptr_t from;
  std::size_t size;
};

// How a piece is copied; called by one thread at a time.
class CopyEngine {
 public:
  virtual ~CopyEngine() = default;
  // Copies, or enqueues that. Throws std::runtime_error.
  virtual void Copy(const SlotCopy& piece) = 0;
  // No piece may wait for the next one any longer.
  virtual void Flush() {}
  // Called behind the last copy, or when there will be no more; again, it does nothing.
  virtual void Finish() {}
};

// At once, by the calling thread.
std::unique_ptr<CopyEngine> HostCopies();

// By CUDA's driver on streams of the calling thread's context, from registered memory; the thread
// waits where more than `most_ahead` bytes would be in flight. An expert is a few copies, and each
// has a beginning and an end in which nothing crosses the link. So the driver is given `together`
// at a time, which it copies one into the other, on the first stream: at the link's own speed
// (docs/results/gpu-engine.md). Drivers before CUDA 12.8 take one at a time, and where `together`
// is 1: on all streams, in turn, beginnings and ends lie beside each other. All begin behind what
// the first stream has, and the first stream goes on when all have ended. Throws
// std::runtime_error where there is no driver.
std::unique_ptr<CopyEngine> DeviceCopies(const std::vector<std::uintptr_t>& streams,
                                         std::size_t most_ahead, std::size_t together);

// One batch. Its memory stays valid until the object is gone and, with a device, the stream is
// idle.
class SlotCopies {
 public:
  // Copies in order, in pieces of `piece` bytes at most (no less than 1).
  SlotCopies(std::vector<SlotCopy> copies, std::unique_ptr<CopyEngine> engine, std::size_t piece);

  // Goes on for about `turn` and returns the bytes copied, or enqueued, in it. With a `rate` in
  // bytes per second (0: none) a piece takes as long as it should, which may be several turns.
  std::size_t Run(std::chrono::nanoseconds turn, double rate);

  // Call it when no more turns follow, finished or not: with a device, the first stream then waits
  // for what was enqueued.
  void Finish() { engine_->Finish(); }

  // Everything is copied, or enqueued, and has taken its time.
  bool done() const { return next_ == copies_.size() && Clock::now() >= due_; }

 private:
  using Clock = std::chrono::steady_clock;

  std::vector<SlotCopy> copies_;
  std::unique_ptr<CopyEngine> engine_;
  const std::size_t piece_;
  std::size_t next_ = 0;  // the copy that goes on
  std::size_t at_ = 0;    // how far it is
  Clock::time_point due_{};
};

}  // namespace ktd
