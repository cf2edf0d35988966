#include <algorithm>

#include "attendance.h"
#include "checker.h"

namespace ktd::testing {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr Attendance::TimePoint kStart{std::chrono::hours(1)};

bool Has(std::span<const std::uint32_t> team, std::uint32_t worker) {
  return std::find(team.begin(), team.end(), worker) != team.end();
}

}  // namespace

TEST(AWorkerThatHoldsUpTheOthersStaysOutAndIsTriedAgain) {
  Attendance attendance(16);
  EXPECT(attendance.Choose(16, kStart).size() == 16);
  EXPECT(attendance.Late(5, milliseconds(4), microseconds(200), kStart));
  const auto team = attendance.Choose(16, kStart + milliseconds(49));
  EXPECT(team.size() == 15 && team[0] == 0 && !Has(team, 5));
  EXPECT(Has(attendance.Choose(16, kStart + milliseconds(50)), 5));
  EXPECT(!attendance.AnyAbsent());
}

TEST(TheAbsenceDoublesUpTo400MsWhileTheCoreStaysTaken) {
  Attendance attendance(16);
  auto now = kStart;
  for (const int absence : {50, 100, 200, 400, 400}) {
    attendance.Choose(16, now);
    EXPECT(attendance.Late(15, milliseconds(4), microseconds(200), now));
    EXPECT(!Has(attendance.Choose(16, now + milliseconds(absence) - microseconds(1)), 15), absence);
    now += milliseconds(absence);
    EXPECT(Has(attendance.Choose(16, now), 15), absence);
    now += milliseconds(7);  // until the other process has its turn again
  }
  now += std::chrono::seconds(1);  // not late for a while: as if it had never been
  EXPECT(attendance.Late(15, milliseconds(4), microseconds(200), now));
  EXPECT(Has(attendance.Choose(16, now + milliseconds(50)), 15));
}

TEST(AWaitThatCostsLessThanAWorkerIsNoReason) {
  Attendance attendance(16);
  attendance.Choose(16, kStart);
  EXPECT(!attendance.Late(3, microseconds(290), microseconds(100), kStart), "noise");
  EXPECT(!attendance.Late(3, milliseconds(4), milliseconds(40), kStart), "a long phase");
  EXPECT(!attendance.Late(3, milliseconds(4), milliseconds(9), kStart), "a piece of the work");
  EXPECT(attendance.Late(3, milliseconds(4), milliseconds(7), kStart));
  Attendance two(2);  // where a worker is half of the pool
  two.Choose(2, kStart);
  EXPECT(!two.Late(1, milliseconds(4), milliseconds(3), kStart));
  EXPECT(two.Late(1, milliseconds(1), microseconds(200), kStart));
  EXPECT(two.Choose(2, kStart + milliseconds(3)).size() == 1);
  EXPECT(two.Choose(2, kStart + milliseconds(4)).size() == 2, "an absence costs twice the wait");
}

TEST(TheCallerAndHalfOfAllAlwaysTakePart) {
  Attendance attendance(5);
  attendance.Choose(5, kStart);
  for (std::size_t worker = 0; worker < 5; ++worker) {
    attendance.Late(worker, milliseconds(4), microseconds(10), kStart);
  }
  const auto team = attendance.Choose(5, kStart);
  EXPECT(team.size() == 3 && team[0] == 0 && team[1] == 3 && team[2] == 4);
  EXPECT(attendance.Choose(2, kStart).size() == 2);
}

TEST(ALateCallerGetsTheCoreOfTheLastWorker) {
  Attendance attendance(4);
  attendance.Choose(3, kStart);
  EXPECT(attendance.MakeRoom(microseconds(200), microseconds(10), kStart) == 0);
  EXPECT(attendance.MakeRoom(milliseconds(4), microseconds(10), kStart) == 2);
  const auto team = attendance.Choose(4, kStart);
  EXPECT(team.size() == 3 && !Has(team, 2));
  Attendance alone(1);
  alone.Choose(1, kStart);
  EXPECT(alone.MakeRoom(milliseconds(4), microseconds(10), kStart) == 0);
}

}  // namespace ktd::testing
