#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "checker.h"
#include "slot_copies.h"

namespace ktd::testing {
namespace {

using std::chrono::milliseconds;

SlotCopy Between(const std::vector<std::uint8_t>& from, std::vector<std::uint8_t>& to) {
  return {reinterpret_cast<std::uintptr_t>(to.data()),
          reinterpret_cast<std::uintptr_t>(from.data()), from.size()};
}

}  // namespace

TEST(CopiesArriveWhateverThePiecesAndTheTurns) {
  for (const std::size_t size : {0u, 1u, 63u, 64u, 1000u}) {
    for (const std::size_t piece : {1u, 64u, 4096u}) {
      std::vector<std::uint8_t> from(size), to(size), other(size);
      std::iota(from.begin(), from.end(), std::uint8_t{1});
      SlotCopies copies({Between(from, to), Between(from, other)}, HostCopies(), piece);
      std::size_t copied = 0;
      while (!copies.done()) copied += copies.Run(milliseconds(1), 0);
      EXPECT(copied == 2 * size);
      EXPECT(to == from && other == from);
    }
  }
}

TEST(ARateMayMakeAPieceTakeSeveralTurns) {
  std::vector<std::uint8_t> from(100, 3), to(100);
  SlotCopies copies({Between(from, to)}, HostCopies(), 50);
  int empty = 0;
  while (!copies.done()) empty += copies.Run(milliseconds(2), 5000.0) == 0;
  EXPECT(empty >= 4);
  EXPECT(to == from);
}

}  // namespace ktd::testing
