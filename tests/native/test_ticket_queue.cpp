#include <sched.h>

#include <stdexcept>
#include <vector>

#include "checker.h"
#include "ticket_queue.h"
#include "topology.h"

namespace ktd::testing {

TEST(TicketsBringTheirOwnResultInAnyOrder) {
  TicketQueue queue(AllowedCpus().front());
  std::vector<std::uint64_t> tickets;
  for (std::uint64_t i = 0; i < 50; ++i) tickets.push_back(queue.Submit([i] { return i * i; }));
  for (std::uint64_t i = 50; i-- > 0;) EXPECT(queue.Wait(tickets[i]) == i * i);
}

TEST(AFailureStaysWithItsTicket) {
  TicketQueue queue(AllowedCpus().front());
  const auto bad = queue.Submit([]() -> std::uint64_t { throw std::runtime_error("planted"); });
  const auto good = queue.Submit([] { return std::uint64_t{5}; });
  EXPECT(queue.Wait(good) == 5);
  EXPECT(MessageOf<std::runtime_error>([&] { queue.Wait(bad); }) == "planted");
}

TEST(ATicketIsWaitedForOnce) {
  TicketQueue queue(AllowedCpus().front());
  const auto ticket = queue.Submit([] { return std::uint64_t{1}; });
  queue.Wait(ticket);
  for (const std::uint64_t unknown : {ticket, ticket + 1, std::uint64_t{0}}) {
    const std::string message = MessageOf<CheckError>([&] { queue.Wait(unknown); });
    EXPECT(Contains(message, Concat("ticket ", unknown, " is not outstanding")), message);
  }
}

TEST(TheEndOfAQueueFinishesWhatWasSubmitted) {
  int ran = 0;
  {
    TicketQueue queue(AllowedCpus().front());
    for (int i = 0; i < 10; ++i) {
      queue.Submit([&ran] {
        ++ran;
        return std::uint64_t{0};
      });
    }
  }
  EXPECT(ran == 10);
}

}  // namespace ktd::testing
