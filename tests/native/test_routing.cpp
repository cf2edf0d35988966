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
  EXPECT(routing.Has(0) && routing.Has(1) && routing.Has(2));
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
  EXPECT(!routing.Has(0) && !routing.Has(1));
  routing.Build(ids, weights, 0, 1, 4);
  EXPECT(routing.groups().empty());
}

}  // namespace ktd::testing
