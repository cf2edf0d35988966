// How fast this host reads its memory: a loop that loads every byte and does nothing with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "crew.h"
#include "tally.h"

namespace ktd {

class ReadLoop {
 public:
  // Maps `bytes` in huge pages where the kernel gives them, each member's share touched by itself.
  // `crew` outlives this. Throws std::bad_alloc, or CheckError for less than a page a member.
  ReadLoop(Crew& crew, std::size_t bytes);
  ~ReadLoop();
  ReadLoop(const ReadLoop&) = delete;
  ReadLoop& operator=(const ReadLoop&) = delete;

  // Bytes a second of `members` that read for `seconds`, prefetching `ahead` bytes; none waits for
  // another. See Rates for `slice`.
  Rates Rate(std::size_t members, double seconds, std::size_t ahead, double slice);

  // Reads `bytes` again and again for `seconds`, 1 to 65536 times; in each pass the members share
  // the bytes evenly and wait for the last. Returns the seconds of each pass.
  std::vector<double> Passes(std::size_t members, std::size_t bytes, double seconds,
                             std::size_t ahead);

 private:
  struct alignas(64) Cursor {
    std::size_t at = 0;
    std::uint64_t sum = 0;  // keeps the loads from being optimised away
  };

  // Reads `bytes` of [begin, end) from `at` on, going on at `begin`; returns where it stopped.
  std::size_t ReadRing(Cursor& cursor, std::size_t begin, std::size_t end, std::size_t at,
                       std::size_t bytes, std::size_t ahead) const noexcept;

  Crew& crew_;
  void* mapping_ = nullptr;
  std::size_t mapped_ = 0;
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::vector<Cursor> cursors_;
  std::vector<Tally> tallies_;
  std::size_t pass_at_ = 0;
};

}  // namespace ktd
