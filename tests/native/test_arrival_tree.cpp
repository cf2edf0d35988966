#include <thread>
#include <vector>

#include "arrival_tree.h"
#include "checker.h"

namespace ktd::testing {

TEST(OnlyTheLastToArriveIsToldSoWhoeverItIs) {
  ArrivalTree tree(70);  // three levels of nodes, the last of each not full
  for (std::size_t count = 1; count <= 70; ++count) {
    for (std::size_t last = 0; last < count; ++last) {
      for (std::size_t i = 1; i < count; ++i) {
        EXPECT(!tree.Arrive((last + i) % count, count), "position ", (last + i) % count, " of ",
               count);
      }
      EXPECT(tree.Arrive(last, count), "position ", last, " of ", count);
    }
  }
}

TEST(TheLastToArriveSeesWhatTheOthersWrote) {
  constexpr std::size_t kThreads = 6;
  for (int round = 0; round < 100; ++round) {
    ArrivalTree tree(kThreads);
    std::size_t cells[kThreads] = {};
    std::size_t sum = 0;  // written by one thread, as the sanitizer would tell
    std::vector<std::thread> threads;
    for (std::size_t position = 0; position < kThreads; ++position) {
      threads.emplace_back([&, position] {
        cells[position] = position + 1;
        if (!tree.Arrive(position, kThreads)) return;
        for (const std::size_t cell : cells) sum += cell;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT(sum == kThreads * (kThreads + 1) / 2, "round ", round, ": ", sum);
  }
}

}  // namespace ktd::testing
