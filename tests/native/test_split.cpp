#include <vector>

#include "checker.h"
#include "split.h"

namespace ktd::testing {
namespace {

template <class Id>
struct Case {
  std::vector<Id> ids = {0, 2, -1, 3, 3, 1};
  std::vector<std::int32_t> table = {5, -1, 0, -1};
  std::vector<std::int32_t> slots = std::vector<std::int32_t>(6, 99);
  std::vector<std::int32_t> cpu_ids = std::vector<std::int32_t>(6, 99);
  std::vector<std::uint64_t> counters = std::vector<std::uint64_t>(8, 100);

  SplitCall<Id> Call() {
    return {ids.data(), table.data(), slots.data(), cpu_ids.data(), counters.data(), 3, 2, 4};
  }
};

template <class Id>
void CheckSplit() {
  Case<Id> c;
  const SplitCounts counts = Split(c.Call());
  EXPECT(counts.in_slots == 2 && counts.on_cpu == 3);
  EXPECT(c.slots == (std::vector<std::int32_t>{5, 0, -1, -1, -1, -1}));
  EXPECT(c.cpu_ids == (std::vector<std::int32_t>{-1, -1, -1, 3, 3, 1}));
  EXPECT(c.counters == (std::vector<std::uint64_t>{101, 100, 100, 101, 101, 100, 100, 102}));
}

}  // namespace

TEST(EveryPairGoesToExactlyOneSideAndIsCounted) {
  CheckSplit<std::int32_t>();
  CheckSplit<std::int64_t>();
}

TEST(WithoutCountersOnlyTheSidesAreWritten) {
  Case<std::int32_t> c;
  SplitCall<std::int32_t> call = c.Call();
  call.counters = nullptr;
  EXPECT(Split(call).on_cpu == 3);
}

TEST(AnIdOutOfRangeIsRefusedBeforeAnythingIsWritten) {
  for (const std::int64_t bad : {std::int64_t{4}, std::int64_t{-2}, std::int64_t{1} << 32}) {
    Case<std::int64_t> c;
    c.ids[5] = bad;
    const std::string message = MessageOf<CheckError>([&] { Split(c.Call()); });
    EXPECT(message == Concat("token 2 asks for expert ", bad,
                             "; the layer has 4 experts, and -1 stands for none"),
           message);
    EXPECT(c.slots == std::vector<std::int32_t>(6, 99));
    EXPECT(c.counters == std::vector<std::uint64_t>(8, 100));
  }
}

TEST(ASplitOfNoTokensTouchesNothing) {
  const SplitCounts counts = Split(SplitCall<std::int32_t>{{}, {}, {}, {}, {}, 0, 8, 4});
  EXPECT(counts.in_slots == 0 && counts.on_cpu == 0);
}

}  // namespace ktd::testing
