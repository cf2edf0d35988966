// Copies by CUDA's driver, which is loaded when it is first used: the extension is built without
// CUDA.
#include <dlfcn.h>

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "slot_copies.h"

namespace ktd {
namespace {

using Event = void*;

// An event for every such part of what may be in flight.
constexpr std::size_t kParts = 4;
// CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING: whoever waits sleeps.
constexpr unsigned int kEventFlags = 1 | 2;

// CUmemcpyAttributes.
struct Attributes {
  int order;
  int source[2];
  int destination[2];
  unsigned int flags;
};
// CU_MEMCPY_SRC_ACCESS_ORDER_ANY: nobody changes the host's copy of an expert.
constexpr int kAnyOrder = 3;
// CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE: steps go on meanwhile.
constexpr unsigned int kBesideCompute = 1;
// CUDA_ERROR_NOT_SUPPORTED: the driver has the call, and not for this device.
constexpr int kNotSupported = 801;

// The few calls that are needed (cuda.h).
struct Driver {
  int (*copy)(std::uintptr_t to, std::uintptr_t from, std::size_t size, void* stream);
  // As it was in CUDA 12.8, which newer drivers keep; null in older ones.
  int (*copy_all)(std::uintptr_t* to, std::uintptr_t* from, std::size_t* sizes, std::size_t count,
                  Attributes* kinds, std::size_t* first_of_kind, std::size_t num_kinds,
                  std::size_t* failed, void* stream);
  int (*create)(Event* event, unsigned int flags);
  int (*record)(Event event, void* stream);
  int (*wait)(Event event);
  int (*follow)(void* stream, Event event, unsigned int flags);
  int (*destroy)(Event event);
  int (*text)(int status, const char** text);

  static const Driver& Get() {
    static const Driver driver = Load();
    return driver;
  }

  void Check(int status, const char* call) const {
    if (status == 0) return;
    const char* said = nullptr;
    text(status, &said);
    throw std::runtime_error(std::string(call) + " says " + (said == nullptr ? "" : said) + " (" +
                             std::to_string(status) + ")");
  }

 private:
  static Driver Load() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw std::runtime_error(std::string("CUDA's driver cannot be loaded: ") + dlerror());
    }
    Driver driver{};
    Find(library, "cuMemcpyAsync", driver.copy);
    driver.copy_all =
        reinterpret_cast<decltype(driver.copy_all)>(dlsym(library, "cuMemcpyBatchAsync"));
    Find(library, "cuEventCreate", driver.create);
    Find(library, "cuEventRecord", driver.record);
    Find(library, "cuEventSynchronize", driver.wait);
    Find(library, "cuStreamWaitEvent", driver.follow);
    Find(library, "cuEventDestroy_v2", driver.destroy);
    Find(library, "cuGetErrorString", driver.text);
    return driver;
  }

  template <class Function>
  static void Find(void* library, const char* name, Function& function) {
    void* found = dlsym(library, name);
    if (found == nullptr) throw std::runtime_error(std::string("CUDA's driver has no ") + name);
    function = reinterpret_cast<Function>(found);
  }
};

class ByDevice final : public CopyEngine {
 public:
  ByDevice(const std::vector<std::uintptr_t>& streams, std::size_t most_ahead, std::size_t together)
      : driver_(Driver::Get()),
        part_(std::max<std::size_t>(1, most_ahead / kParts)),
        together_(driver_.copy_all == nullptr ? 1 : together) {
    for (const std::uintptr_t stream : streams) streams_.push_back(reinterpret_cast<void*>(stream));
    if (together_ > 1) streams_.resize(1);
  }
  ByDevice(const ByDevice&) = delete;
  ByDevice& operator=(const ByDevice&) = delete;
  ~ByDevice() override {
    for (Event event : events_) driver_.destroy(event);
    if (between_ != nullptr) driver_.destroy(between_);
  }

  void Copy(const SlotCopy& piece) override {
    if (!forked_) Fork();
    since_ += piece.size;
    if (together_ > 1) {
      to_.push_back(piece.to);
      from_.push_back(piece.from);
      sizes_.push_back(piece.size);
      if (to_.size() == together_ || since_ >= part_) Flush();
    } else {
      driver_.Check(driver_.copy(piece.to, piece.from, piece.size, streams_[turn_]),
                    "cuMemcpyAsync");
    }
    if (since_ >= part_) EndPart(streams_[turn_]);
    turn_ = (turn_ + 1) % streams_.size();
  }

  void Flush() override {
    if (to_.empty()) return;
    const int status = CopyAll();
    to_.clear();
    from_.clear();
    sizes_.clear();
    driver_.Check(status, "the driver's copying");
  }

  void Finish() override {
    if (!forked_) return;
    Flush();
    forked_ = false;
    for (std::size_t at = 1; at < streams_.size(); ++at) Follow(streams_[0], streams_[at]);
  }

 private:
  int CopyAll() {
    if (together_ > 1) {
      Attributes kind{kAnyOrder, {}, {}, kBesideCompute};
      std::size_t first = 0;
      std::size_t failed = 0;
      const int status = driver_.copy_all(to_.data(), from_.data(), sizes_.data(), to_.size(),
                                          &kind, &first, 1, &failed, streams_[0]);
      if (status != kNotSupported) return status;
      together_ = 1;
    }
    for (std::size_t at = 0; at < to_.size(); ++at) {
      const int status = driver_.copy(to_[at], from_[at], sizes_[at], streams_[0]);
      if (status != 0) return status;
    }
    return 0;
  }

  void EndPart(void* stream) {
    since_ = 0;
    Event event = nullptr;
    if (events_.size() < kParts) {
      driver_.Check(driver_.create(&event, kEventFlags), "cuEventCreate");
    } else {
      event = events_.front();
      driver_.Check(driver_.wait(event), "cuEventSynchronize");
      events_.pop_front();
    }
    events_.push_back(event);
    driver_.Check(driver_.record(event, stream), "cuEventRecord");
  }

  void Fork() {
    for (std::size_t at = 1; at < streams_.size(); ++at) Follow(streams_[at], streams_[0]);
    forked_ = true;
  }

  // What is enqueued on `later` from now on comes behind what `earlier` has. An event can be
  // recorded again at once: whoever waits for it does so for the record that was there.
  void Follow(void* later, void* earlier) {
    if (between_ == nullptr) driver_.Check(driver_.create(&between_, kEventFlags), "cuEventCreate");
    driver_.Check(driver_.record(between_, earlier), "cuEventRecord");
    driver_.Check(driver_.follow(later, between_, 0), "cuStreamWaitEvent");
  }

  const Driver& driver_;
  std::vector<void*> streams_;
  const std::size_t part_;
  std::size_t together_;
  // Of the next call for several.
  std::vector<std::uintptr_t> to_;
  std::vector<std::uintptr_t> from_;
  std::vector<std::size_t> sizes_;
  std::size_t turn_ = 0;
  std::size_t since_ = 0;
  bool forked_ = false;
  Event between_ = nullptr;
  std::deque<Event> events_;  // that in front was recorded first
};

}  // namespace

std::unique_ptr<CopyEngine> DeviceCopies(const std::vector<std::uintptr_t>& streams,
                                         std::size_t most_ahead, std::size_t together) {
  return std::make_unique<ByDevice>(streams, most_ahead, together);
}

}  // namespace ktd
