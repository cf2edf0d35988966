// Every unit is computed once, whoever is slow.
#include <random>
#include <thread>

#include "checker.h"
#include "work_list.h"

namespace ktd::testing {
namespace {

std::vector<WorkGroup> RandomGroups(std::mt19937& random) {
  std::vector<WorkGroup> groups(random() % 9);
  for (WorkGroup& group : groups) group = {random() % 40 + 1, random() % 1000 + 1};
  return groups;
}

// Workers of up to four nodes, some of which have no worker or no units.
struct Nodes {
  explicit Nodes(std::mt19937& random, std::size_t workers) {
    const std::size_t nodes = random() % 4 + 1;
    shares = {0};
    for (std::size_t i = 0; i < nodes; ++i) shares.push_back(shares.back() + random() % 9);
    if (shares.back() == 0) shares.back() = 1;
    for (std::size_t i = 0; i < workers; ++i) {
      node_of.push_back(static_cast<std::uint32_t>(random() % nodes));
    }
  }
  WorkNodes view() const { return {node_of, shares}; }

  std::vector<std::uint32_t> node_of;
  std::vector<std::size_t> shares;
};

// Counts of the units, in the order of the groups.
class Seen {
 public:
  explicit Seen(const std::vector<WorkGroup>& groups) {
    std::size_t units = 0;
    for (const WorkGroup& group : groups) {
      starts_.push_back(units);
      units += group.units;
    }
    counts_ = std::vector<std::atomic<int>>(units);
  }
  void Add(const WorkRange& range) {
    for (std::size_t i = range.begin; i < range.end; ++i) ++counts_.at(starts_.at(range.group) + i);
  }
  bool AllOnce() const {
    for (const std::atomic<int>& count : counts_) {
      if (count != 1) return false;
    }
    return true;
  }

 private:
  std::vector<std::size_t> starts_;
  std::vector<std::atomic<int>> counts_;
};

}  // namespace

TEST(EveryUnitIsClaimedOnceInAnyOrderOfWorkers) {
  std::mt19937 random(5);
  WorkList list(17);
  for (int round = 0; round < 2000; ++round) {
    const std::vector<WorkGroup> groups = RandomGroups(random);
    const std::size_t workers = random() % 17 + 1;
    const Nodes nodes(random, workers);
    if (round % 2 == 0) list.Reset(groups, nodes.view());
    if (round % 2 == 1) list.Reset(groups, workers);
    Seen seen(groups);
    std::vector<std::size_t> busy(workers);
    for (std::size_t i = 0; i < workers; ++i) busy[i] = i;
    while (!busy.empty()) {
      const std::size_t at = random() % busy.size();
      WorkRange range{};
      if (list.Claim(busy[at], range)) {
        EXPECT(range.begin < range.end && range.end <= groups[range.group].units);
        seen.Add(range);
      } else {
        busy.erase(busy.begin() + static_cast<std::ptrdiff_t>(at));
      }
    }
    EXPECT(seen.AllOnce(), "round ", round);
  }
}

TEST(EveryUnitIsClaimedOnceByThreadsAtTheSameTime) {
  std::mt19937 random(6);
  WorkList list(4);
  for (int round = 0; round < 50; ++round) {
    const std::vector<WorkGroup> groups = RandomGroups(random);
    const Nodes nodes(random, 4);
    list.Reset(groups, nodes.view());
    Seen seen(groups);
    std::vector<std::thread> threads;
    for (std::size_t worker = 0; worker < 4; ++worker) {
      threads.emplace_back([&, worker] {
        WorkRange range{};
        while (list.Claim(worker, range)) seen.Add(range);
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT(seen.AllOnce(), "round ", round);
  }
}

TEST(AWorkerBeginsWhereItsShareOfTheCostBegins) {
  const std::vector<WorkGroup> groups = {{10, 8}, {4, 20}, {80, 1}};  // 240 in all
  WorkList list(4);
  list.Reset(groups, 4);
  const WorkRange expected[] = {{0, 0, 0}, {0, 8, 0}, {1, 2, 0}, {2, 20, 0}};
  for (std::size_t worker = 0; worker < 4; ++worker) {
    WorkRange range{};
    EXPECT(list.Claim(worker, range));
    EXPECT(range.group == expected[worker].group && range.begin == expected[worker].begin,
           "worker ", worker, " begins at unit ", range.begin, " of group ", range.group);
  }
}

TEST(ASlowWorkersShareIsTakenOver) {
  const std::vector<WorkGroup> groups = {{300, 1}};
  WorkList list(3);
  list.Reset(groups, 3);
  WorkRange slow{};
  EXPECT(list.Claim(0, slow));
  std::size_t others = 0;
  WorkRange range{};
  while (list.Claim(1, range)) others += range.end - range.begin;
  EXPECT(others + (slow.end - slow.begin) == 300, "others did ", others);
}

TEST(AWorkerTakesUnitsOfItsOwnNodeWhileThereAreAny) {
  // Node 0 has three workers of four and so three quarters of each group, node 1 the rest.
  const std::uint32_t node_of[] = {0, 1, 0, 0};
  const std::size_t shares[] = {0, 3, 4};
  const WorkGroup groups[] = {{40, 1}, {8, 5}};
  const std::size_t boundaries[] = {30, 6};
  WorkList list(4);
  for (const std::size_t worker : {0, 1, 2}) {
    list.Reset(groups, {node_of, shares});
    std::size_t own = 0;
    WorkRange range{};
    while (list.Claim(worker, range)) {
      const bool of_node_0 = range.end <= boundaries[range.group];
      EXPECT(of_node_0 || range.begin >= boundaries[range.group], "a range of two nodes");
      if (of_node_0 != (node_of[worker] == 0)) break;
      own += range.end - range.begin;
    }
    EXPECT(own == (worker == 1 ? 10U + 2U : 30U + 6U), "worker ", worker, ": ", own);
  }
}

TEST(UnitsOfANodeWithoutWorkersGoToTheNextInEqualShares) {
  const std::uint32_t node_of[] = {1, 1};
  const std::size_t shares[] = {0, 2, 4, 6};
  const WorkGroup groups[] = {{60, 1}};
  WorkList list(2);
  list.Reset(groups, {node_of, shares});
  WorkRange range{};  // of 30 units for each worker a third, or what is left of a node's part
  EXPECT(list.Claim(0, range));
  EXPECT(range.begin == 20 && range.end == 30, range.begin, " to ", range.end);
  EXPECT(list.Claim(1, range));
  EXPECT(range.begin == 10 && range.end == 20, range.begin, " to ", range.end);
}

TEST(NothingIsClaimedOfNothing) {
  WorkList list(2);
  WorkRange range{};
  list.Reset({}, 2);
  EXPECT(!list.Claim(0, range) && !list.Claim(1, range));
}

}  // namespace ktd::testing
