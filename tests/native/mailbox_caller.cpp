#include "mailbox_caller.h"

#include <unistd.h>

#include <atomic>

#include "checker.h"
#include "topology.h"

namespace ktd::testing {

PoolOptions Threads(std::size_t threads) {
  PoolOptions options;
  options.threads = threads;
  options.cpus = AllowedCpus();
  options.measure_crossover = false;
  return options;
}

void Publish(Mailbox& box, const ForwardCall& call, std::uint32_t epoch, std::uint32_t deferred) {
  box.layer = static_cast<std::uint32_t>(call.layer);
  box.tokens = static_cast<std::uint32_t>(call.tokens);
  box.top_k = static_cast<std::uint32_t>(call.top_k);
  box.deferred = deferred;
  box.x = reinterpret_cast<std::uintptr_t>(call.x);
  box.ids = reinterpret_cast<std::uintptr_t>(call.ids);
  box.weights = reinterpret_cast<std::uintptr_t>(call.weights);
  box.out = reinterpret_cast<std::uintptr_t>(call.out);
  std::atomic_ref<std::uint32_t>(box.epoch).store(epoch, std::memory_order_release);
}

void AwaitAnswer(Mailbox& box, std::uint32_t epoch) {
  const std::atomic_ref<std::uint32_t> answered(box.answered);
  for (int polls = 0; answered.load(std::memory_order_acquire) != epoch; ++polls) {
    EXPECT(polls < 100'000, "no answer after 10 s");
    usleep(100);
  }
}

}  // namespace ktd::testing
