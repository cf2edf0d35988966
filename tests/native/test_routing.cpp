#include "checker.h"
#include "routing.h"

namespace ktd::testing {

TEST(PairsAreGroupedByExpertThenToken) {
  Routing routing;
  const std::int32_t ids[] = {3, 1, -1, 3, 1, 1};
  const float weights[] = {10, 11, 12, 13, 14, 15};
  routing.Build(ids, weights, 3, 2, 5);
  EXPECT(routing.groups().size() == 2);
  EXPECT(routing.pairs() == 5);
  const ExpertGroup one = routing.groups()[0];
  const ExpertGroup three = routing.groups()[1];
  EXPECT(one.expert == 1 && one.count() == 3 && three.expert == 3 && three.count() == 2);
  const std::vector<std::int32_t> tokens(routing.tokens(), routing.tokens() + 5);
  const std::vector<float> sorted(routing.weights(), routing.weights() + 5);
  EXPECT(tokens == (std::vector<std::int32_t>{0, 2, 2, 0, 1}));
  EXPECT(sorted == (std::vector<float>{11, 14, 15, 10, 13}));
}

TEST(ARoutingOfNothingHasNoGroups) {
  Routing routing;
  const std::int32_t ids[] = {-1, -1};
  const float weights[] = {1, 1};
  routing.Build(ids, weights, 2, 1, 4);
  EXPECT(routing.groups().empty() && routing.pairs() == 0);
  routing.Build(ids, weights, 0, 1, 4);
  EXPECT(routing.groups().empty());
}

TEST(SharesCoverEveryUnitOnce) {
  const std::size_t units[] = {1, 7, 96, 3, 13};
  const std::size_t costs[] = {1, 4, 1, 9, 2};
  std::size_t total = 0;
  for (int g = 0; g < 5; ++g) total += units[g] * costs[g];
  for (std::size_t workers = 1; workers <= 33; ++workers) {
    std::size_t before = 0;
    for (int g = 0; g < 5; ++g) {
      std::size_t next = 0;
      for (std::size_t worker = 0; worker < workers; ++worker) {
        const UnitRange range = ShareOf(total, before, units[g], costs[g], worker, workers);
        EXPECT(range.begin == next && range.end >= range.begin, "group ", g, ", worker ", worker,
               " of ", workers);
        next = range.end;
      }
      EXPECT(next == units[g], "group ", g, " with ", workers, " workers");
      before += units[g] * costs[g];
    }
  }
}

}  // namespace ktd::testing
