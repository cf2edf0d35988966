// A layer's calls through the mailbox, and on a host of two nodes.
#include <cmath>

#include "checker.h"
#include "mailbox_caller.h"
#include "moe_layer.h"
#include "pool_mailbox.h"
#include "recorded_hosts.h"
#include "topology.h"

namespace ktd::testing {
namespace {

std::uint64_t Heartbeat(Mailbox& box) {
  return std::atomic_ref<std::uint64_t>(box.heartbeat).load(std::memory_order_relaxed);
}

}  // namespace

TEST(ThePoolComputesWhatComesThroughTheMailbox) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(9, 301, 200);
  const std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box{};
  PoolMailbox mailbox(pool, box);
  mailbox.server().BeginStep();
  std::uint32_t epoch = 0;
  for (const std::size_t tokens : {1, 0, 5}) {
    Call call = RandomCall(layer, tokens, 3, 8);
    const std::uint64_t beats = Heartbeat(box);
    Publish(box, call.On(handle), ++epoch);
    AwaitAnswer(box, epoch);
    EXPECT(box.failed == 0, mailbox.server().LastFailure());
    ExpectRight(layer, call, Concat(tokens, " tokens"));
    EXPECT(Heartbeat(box) > beats);
  }
  mailbox.server().EndStep();
}

TEST(LongCallsSayWhatTheyTookAndRead) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(3, 64, 64);
  const std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box{};
  PoolMailbox mailbox(pool, box);
  mailbox.server().BeginStep();
  Call few = RandomCall(layer, PoolMailbox::kLongTokens - 1, 1, 3);
  Publish(box, few.On(handle), 1);
  AwaitAnswer(box, 1);
  EXPECT(mailbox.long_bytes() == 0 && mailbox.long_nanoseconds() == 0);
  const std::uint64_t before = pool.bytes_read();
  Call many = RandomCall(layer, PoolMailbox::kLongTokens, 1, 3);
  Publish(box, many.On(handle), 2);
  AwaitAnswer(box, 2);
  EXPECT(mailbox.long_bytes() == pool.bytes_read() - before);
  EXPECT(mailbox.long_bytes() > 0 && mailbox.long_nanoseconds() > 0);
  mailbox.server().EndStep();
}

TEST(RowsWithoutAnIdStayAsTheyAre) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(6, 96, 64);
  const std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box{};
  PoolMailbox mailbox(pool, box);
  mailbox.server().BeginStep();
  std::uint32_t epoch = 0;
  for (const std::size_t tokens : {1, 3, 70}) {  // none ours; few tokens; put together elsewhere
    Call call = RandomCall(layer, tokens, 2, 5);
    for (std::size_t token = 0; token < tokens; ++token) {
      call.ids[2 * token] = token % 2 == 0 ? -1 : 3;
      if (token % 2 == 0) call.ids[2 * token + 1] = -1;
    }
    Publish(box, call.On(handle), ++epoch);
    AwaitAnswer(box, epoch);
    EXPECT(box.failed == 0, mailbox.server().LastFailure());
    for (std::size_t i = 0; i < call.out.size(); ++i) {
      const bool idle = i / 96 % 2 == 0;
      EXPECT(std::isnan(call.out[i]) == idle, tokens, " tokens: ", call.out[i], " at ", i);
      if (idle) call.out[i] = 0.0f;
    }
    ExpectRight(layer, call, Concat(tokens, " tokens"));
  }
  mailbox.server().EndStep();
}

TEST(ACallThatThePoolRefusesIsAnsweredAsFailed) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(4, 32, 32);
  const std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box{};
  PoolMailbox mailbox(pool, box);
  Call call = RandomCall(layer, 1, 2, 8);
  call.ids[0] = 4;
  Publish(box, call.On(handle), 1);
  AwaitAnswer(box, 1);
  EXPECT(box.failed == 1 && Contains(mailbox.server().LastFailure(), "asks for expert 4"),
         mailbox.server().LastFailure());
}

TEST(TheNumberOfNodesDoesNotChangeTheResult) {
  if (AllowedCpus().size() < 2) SKIP("it takes two cores");
  const SysfsTree tree;
  const int first = AllowedCpus()[0];
  const int second = AllowedCpus()[1];
  tree.OnlineNodes("0-1");
  tree.Node(0, Concat(first), 1024, "10 21");
  tree.Node(1, Concat(second), 1024, "21 10");
  PoolOptions options = Threads(2);
  options.cpus = {first, second};
  ExpertPool one(KernelTable().back(), options);
  options.sysfs = tree.path();
  ExpertPool two(KernelTable().back(), options);
  EXPECT(one.homes().nodes.size() == 1 && two.homes().nodes.size() == 2);
  const FormatCase layer = RandomLayer(6, 500, 400);
  Call call = RandomCall(layer, 4, 3, 9);
  Call again = call;
  one.Forward(call.On(one.AddLayer(layer.layer())));
  two.Forward(again.On(two.AddLayer(layer.layer())));
  ExpectRight(layer, again, "two nodes");
  EXPECT(call.out == again.out);
}

}  // namespace ktd::testing
