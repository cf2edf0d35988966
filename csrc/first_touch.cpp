#include "first_touch.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace ktd {
namespace {

constexpr std::size_t kPage = 4096;

// A write that changes nothing, also where a loader is writing.
void TouchPage(std::uint8_t* begin, std::uint8_t* end) {
  for (std::uint8_t* at = begin; at < end; at += kPage) {
    std::atomic_ref<std::uint8_t>(*at).fetch_or(0, std::memory_order_relaxed);
  }
}

// Which of how many workers of its home each worker of the team is. A home without a worker in the
// team has its pages touched by worker 0.
struct Place {
  std::uint32_t home;
  std::size_t index;
  std::size_t count;
};

struct Touch {
  std::uint8_t* memory;
  std::size_t bytes;
  std::vector<std::uint32_t> page_homes;
  std::vector<Place> places;   // by worker of the team
  std::vector<bool> deserted;  // by home

  static void Run(void* context, std::size_t, std::size_t worker, std::size_t) {
    const Touch& self = *static_cast<Touch*>(context);
    const Place& place = self.places[worker];
    std::size_t seen = 0;
    for (std::size_t page = 0; page < self.page_homes.size(); ++page) {
      const std::uint32_t home = self.page_homes[page];
      const bool mine = home == place.home && seen++ % place.count == place.index;
      if (!mine && !(worker == 0 && self.deserted[home])) continue;
      const std::size_t begin = page * kHugePage;
      TouchPage(self.memory + begin, self.memory + std::min(begin + kHugePage, self.bytes));
    }
  }
};

}  // namespace

void TouchFirst(ThreadPool& threads, const NumaHomes& homes, const LayerMatrices& matrices,
                std::uint8_t* memory) {
  const std::span<const std::uint32_t> team = threads.Choose(threads.threads());
  Touch touch{memory, matrices.bytes(), PageHomes(matrices, homes.shares, kHugePage), {}, {}};
  std::vector<std::size_t> members(homes.nodes.size(), 0);
  for (const std::uint32_t worker : team) {
    const std::uint32_t home = homes.home_of[worker];
    touch.places.push_back({home, members[home]++, 0});
  }
  for (Place& place : touch.places) place.count = members[place.home];
  for (const std::size_t count : members) touch.deserted.push_back(count == 0);
  threads.Run({1, Touch::Run, &touch});
}

}  // namespace ktd
