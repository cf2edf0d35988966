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

// The few calls that are needed (cuda.h).
struct Driver {
  int (*copy)(std::uintptr_t to, std::uintptr_t from, std::size_t size, void* stream);
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
  ByDevice(std::vector<std::uintptr_t> streams, std::size_t most_ahead)
      : driver_(Driver::Get()), part_(std::max<std::size_t>(1, most_ahead / kParts)) {
    for (const std::uintptr_t stream : streams) streams_.push_back(reinterpret_cast<void*>(stream));
  }
  ByDevice(const ByDevice&) = delete;
  ByDevice& operator=(const ByDevice&) = delete;
  ~ByDevice() override {
    for (Event event : events_) driver_.destroy(event);
    if (between_ != nullptr) driver_.destroy(between_);
  }

  void Copy(const SlotCopy& piece) override {
    if (!forked_) Fork();
    void* const stream = streams_[turn_];
    turn_ = (turn_ + 1) % streams_.size();
    driver_.Check(driver_.copy(piece.to, piece.from, piece.size, stream), "cuMemcpyAsync");
    since_ += piece.size;
    if (since_ < part_) return;
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

  void Finish() override {
    if (!forked_) return;
    forked_ = false;
    for (std::size_t at = 1; at < streams_.size(); ++at) Follow(streams_[0], streams_[at]);
  }

 private:
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
  std::size_t turn_ = 0;
  std::size_t since_ = 0;
  bool forked_ = false;
  Event between_ = nullptr;
  std::deque<Event> events_;  // that in front was recorded first
};

}  // namespace

std::unique_ptr<CopyEngine> DeviceCopies(std::vector<std::uintptr_t> streams,
                                         std::size_t most_ahead) {
  return std::make_unique<ByDevice>(std::move(streams), most_ahead);
}

}  // namespace ktd
