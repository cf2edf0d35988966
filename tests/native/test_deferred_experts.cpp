// Experts that answer one call late.
#include <cmath>
#include <vector>

#include "checker.h"
#include "mailbox_caller.h"
#include "moe_layer.h"

namespace ktd::testing {
namespace {

constexpr std::size_t kHidden = 96;

// The place of a token's k-th highest weight, of equal ones the first.
std::vector<std::size_t> Ranked(const Call& call, std::size_t token) {
  const float* weights = call.weights.data() + token * call.top_k;
  std::vector<std::size_t> places;
  for (std::size_t place = 0; place < call.top_k; ++place) {
    auto at = places.begin();
    while (at != places.end() && weights[*at] >= weights[place]) ++at;
    places.insert(at, place);
  }
  return places;
}

// What the pool gives for those pairs of a call that are late, or for the others.
std::vector<float> Answer(ExpertPool& pool, std::size_t handle, Call call, std::size_t deferred,
                          bool late) {
  for (std::size_t token = 0; token < call.tokens; ++token) {
    const std::vector<std::size_t> places = Ranked(call, token);
    for (std::size_t rank = 0; rank < call.top_k; ++rank) {
      const bool is_late = rank + deferred >= call.top_k;
      if (is_late != late) call.ids[token * call.top_k + places[rank]] = -1;
    }
  }
  pool.Forward(call.On(handle));
  return call.out;
}

void ExpectNear(const std::vector<float>& found, const std::vector<float>& wanted,
                const std::string& what) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT(std::abs(found[i] - wanted[i]) <= 1e-5f + 1e-5f * std::abs(wanted[i]), what, ": ",
           found[i], " where ", wanted[i], " is right, at ", i);
  }
}

std::vector<float> Sum(std::vector<float> one, const std::vector<float>& other) {
  for (std::size_t i = 0; i < one.size(); ++i) one[i] += other[i];
  return one;
}

}  // namespace

TEST(LateExpertsAreInTheNextAnswer) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(9, kHidden, 64);
  const std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box{};
  box.hidden = kHidden;
  PoolMailbox mailbox(pool, box);
  mailbox.server().BeginStep();
  std::uint32_t epoch = 0;
  for (const std::size_t tokens : {1, 5, 33}) {
    std::vector<float> late(tokens * kHidden, 0.0f);
    unsigned seed = 3;
    for (const std::uint32_t deferred : {2, 4, 1, 0, 0, 3, 0}) {
      Call call = RandomCall(layer, tokens, 4, ++seed);
      if (tokens > 1) call.weights[1] = call.weights[0];  // equal ones
      const std::vector<float> now = Answer(pool, handle, call, deferred, false);
      const std::vector<float> next = Answer(pool, handle, call, deferred, true);
      Publish(box, call.On(handle), ++epoch, deferred);
      AwaitAnswer(box, epoch);
      EXPECT(box.failed == 0, mailbox.server().LastFailure());
      for (float& value : call.out) {
        if (std::isnan(value)) value = 0.0f;  // a row that nobody reads
      }
      ExpectNear(call.out, Sum(now, late), Concat(tokens, " tokens, ", deferred, " late"));
      late = deferred > 0 ? next : std::vector<float>(tokens * kHidden, 0.0f);
    }
  }
  mailbox.server().EndStep();
}

TEST(ARowWithoutExpertsOfItsOwnIsWrittenBehindADeferringCall) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(6, kHidden, 64);
  const std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box{};
  box.hidden = kHidden;
  PoolMailbox mailbox(pool, box);
  mailbox.server().BeginStep();
  Call first = RandomCall(layer, 3, 2, 5);
  first.ids = {1, 2, 3, -1, -1, -1};
  first.weights = {0.75f, 0.25f, 0.75f, 0.25f, 0.75f, 0.25f};
  Publish(box, first.On(handle), 1, 1);
  AwaitAnswer(box, 1);
  Call second = RandomCall(layer, 3, 2, 6);
  second.ids.assign(6, -1);
  Publish(box, second.On(handle), 2, 0);
  AwaitAnswer(box, 2);
  // The first token's second expert; the others have none that is late.
  ExpectNear(second.out, Answer(pool, handle, first, 1, true), "late");
  for (std::size_t i = kHidden; i < second.out.size(); ++i) EXPECT(second.out[i] == 0.0f);
  mailbox.server().EndStep();
}

TEST(WhatIsLateBelongsToItsStepAlone) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(6, kHidden, 64);
  const std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box{};
  box.hidden = kHidden;
  PoolMailbox mailbox(pool, box);
  mailbox.server().BeginStep();
  Call first = RandomCall(layer, 4, 3, 5);
  Publish(box, first.On(handle), 1, 3);
  AwaitAnswer(box, 1);
  Call other = RandomCall(layer, 2, 3, 6);
  Publish(box, other.On(handle), 2, 0);
  AwaitAnswer(box, 2);
  ExpectRight(layer, other, "another number of tokens");
  mailbox.server().EndStep();
}

TEST(AFailureOfWhatIsLateFailsTheNextCall) {
  ExpertPool pool(KernelTable().back(), Threads(2));
  const FormatCase layer = RandomLayer(4, kHidden, 32);
  const std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box{};
  box.hidden = kHidden;
  PoolMailbox mailbox(pool, box);
  mailbox.server().BeginStep();
  Call call = RandomCall(layer, 1, 2, 8);
  call.ids = {1, 99};
  call.weights = {0.9f, 0.1f};
  Publish(box, call.On(handle), 1, 1);
  AwaitAnswer(box, 1);
  EXPECT(box.failed == 0);
  Call next = RandomCall(layer, 1, 2, 9);
  Publish(box, next.On(handle), 2, 0);
  AwaitAnswer(box, 2);
  EXPECT(box.failed == 1 && Contains(mailbox.server().LastFailure(), "asks for expert 99"),
         mailbox.server().LastFailure());
  Publish(box, next.On(handle), 3, 0);
  AwaitAnswer(box, 3);
  EXPECT(box.failed == 0, mailbox.server().LastFailure());
  mailbox.server().EndStep();
}

}  // namespace ktd::testing
