// Copies by CUDA's driver, which is loaded when it is first used: the extension is built without
// CUDA.
#include <dlfcn.h>

#include <deque>
#include <stdexcept>
#include <string>

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
  ByDevice(std::uintptr_t stream, std::size_t most_ahead)
      : driver_(Driver::Get()),
        stream_(reinterpret_cast<void*>(stream)),
        part_(most_ahead / kParts) {}
  ByDevice(const ByDevice&) = delete;
  ByDevice& operator=(const ByDevice&) = delete;
  ~ByDevice() override {
    for (Event event : events_) driver_.destroy(event);
  }

  void Copy(const SlotCopy& piece) override {
    driver_.Check(driver_.copy(piece.to, piece.from, piece.size, stream_), "cuMemcpyAsync");
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
    driver_.Check(driver_.record(event, stream_), "cuEventRecord");
  }

 private:
  const Driver& driver_;
  void* const stream_;
  const std::size_t part_;
  std::size_t since_ = 0;
  std::deque<Event> events_;  // that in front was recorded first
};

}  // namespace

std::unique_ptr<CopyEngine> DeviceCopies(std::uintptr_t stream, std::size_t most_ahead) {
  return std::make_unique<ByDevice>(stream, most_ahead);
}

}  // namespace ktd
