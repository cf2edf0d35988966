// Experts that answer one call late.
#include <cmath>
#include <string>
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

// A layer behind a mailbox whose step runs.
struct Rig {
  explicit Rig(std::size_t experts) : layer(RandomLayer(experts, kHidden, 64)) {
    mailbox.server().BeginStep();
  }
  ~Rig() { mailbox.server().EndStep(); }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  // One call through the mailbox, answered. False: as failed.
  bool Run(Call& call, std::uint32_t deferred) {
    Publish(box, call.On(handle), ++epoch, deferred);
    AwaitAnswer(box, epoch);
    return box.failed == 0;
  }

  static Mailbox Box() {
    Mailbox box{};
    box.hidden = kHidden;
    return box;
  }

  ExpertPool pool{KernelTable().back(), Threads(2)};
  FormatCase layer;
  std::size_t handle = pool.AddLayer(layer.layer());
  Mailbox box = Box();
  PoolMailbox mailbox{pool, box};
  std::uint32_t epoch = 0;
};

std::vector<float> Sum(std::vector<float> one, const std::vector<float>& other) {
  for (std::size_t i = 0; i < one.size(); ++i) one[i] += other[i];
  return one;
}

}  // namespace

TEST(LateExpertsAreInTheNextAnswer) {
  Rig rig(9);
  for (const std::size_t tokens : {1, 5, 33}) {
    std::vector<float> late(tokens * kHidden, 0.0f);
    unsigned seed = 3;
    for (const std::uint32_t deferred : {2, 4, 1, 0, 0, 3, 0}) {
      Call call = RandomCall(rig.layer, tokens, 4, ++seed);
      if (tokens > 1) call.weights[1] = call.weights[0];  // equal ones
      const std::vector<float> now = Answer(rig.pool, rig.handle, call, deferred, false);
      const std::vector<float> next = Answer(rig.pool, rig.handle, call, deferred, true);
      EXPECT(rig.Run(call, deferred), rig.mailbox.server().LastFailure());
      for (float& value : call.out) {
        if (std::isnan(value)) value = 0.0f;  // a row that nobody reads
      }
      ExpectNear(call.out, Sum(now, late), Concat(tokens, " tokens, ", deferred, " late"));
      late = deferred > 0 ? next : std::vector<float>(tokens * kHidden, 0.0f);
    }
  }
}

TEST(ARowWithoutExpertsOfItsOwnIsWrittenBehindADeferringCall) {
  Rig rig(6);
  Call first = RandomCall(rig.layer, 3, 2, 5);
  first.ids = {1, 2, 3, -1, -1, -1};
  first.weights = {0.75f, 0.25f, 0.75f, 0.25f, 0.75f, 0.25f};
  EXPECT(rig.Run(first, 1), rig.mailbox.server().LastFailure());
  Call second = RandomCall(rig.layer, 3, 2, 6);
  second.ids.assign(6, -1);
  EXPECT(rig.Run(second, 0), rig.mailbox.server().LastFailure());
  // The first token's second expert; the others have none that is late.
  ExpectNear(second.out, Answer(rig.pool, rig.handle, first, 1, true), "late");
  for (std::size_t i = kHidden; i < second.out.size(); ++i) EXPECT(second.out[i] == 0.0f);
}

TEST(WhatIsLateBelongsToItsStepAlone) {
  Rig rig(6);
  Call first = RandomCall(rig.layer, 4, 3, 5);
  EXPECT(rig.Run(first, 3), rig.mailbox.server().LastFailure());
  Call other = RandomCall(rig.layer, 2, 3, 6);
  EXPECT(rig.Run(other, 0), rig.mailbox.server().LastFailure());
  ExpectRight(rig.layer, other, "another number of tokens");
}

TEST(AFailureOfWhatIsLateFailsTheNextCall) {
  Rig rig(4);
  Call call = RandomCall(rig.layer, 1, 2, 8);
  call.ids = {1, 99};
  call.weights = {0.9f, 0.1f};
  EXPECT(rig.Run(call, 1), rig.mailbox.server().LastFailure());
  Call next = RandomCall(rig.layer, 1, 2, 9);
  EXPECT(!rig.Run(next, 0));
  const std::string said = rig.mailbox.server().LastFailure();
  EXPECT(Contains(said, "asks for expert 99"), said);
  EXPECT(rig.Run(next, 0), rig.mailbox.server().LastFailure());
}

}  // namespace ktd::testing
