// Threads that measure what the host can do: pinned as the pool's are, asleep between samples.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace ktd {

// Not thread-safe: one caller at a time.
class Crew {
 public:
  // One member for each of `cpus`, pinned to it. Throws std::runtime_error if one may not be used.
  explicit Crew(const std::vector<int>& cpus);

  // In a forked child, which has no members, only forgets them.
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  std::size_t size() const noexcept { return threads_.size(); }

  // Runs `work(member)` on members 0 .. members - 1, which begin together, and returns when all
  // have ended. 1 <= members <= size(); `work` must not throw.
  void Run(std::size_t members, const std::function<void(std::size_t)>& work);

 private:
  struct State;  // what the members share

  void Loop(std::size_t member);
  void Stop() noexcept;

  const pid_t pid_;
  std::unique_ptr<State> state_;
  std::vector<std::thread> threads_;
};

}  // namespace ktd
