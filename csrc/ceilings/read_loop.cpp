#include "read_loop.h"

#include <emmintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "../check.h"
#include "spin_barrier.h"

namespace ktd {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kStep = 256;  // bytes of one round of the loop
constexpr std::size_t kMostPasses = 1 << 16;
constexpr std::size_t kBetweenClocks = 256 << 10;  // about 20 us of one core's bandwidth

constexpr std::size_t RoundDown(std::size_t value, std::size_t to) { return value / to * to; }

std::uint64_t Read(const std::uint8_t* from, std::size_t bytes, std::size_t ahead) noexcept {
  __m128i sums[4] = {};
  for (const std::uint8_t* end = from + bytes; from < end; from += kStep) {
    for (std::size_t line = 0; line < kStep; line += 64) {
      // Beyond the end of the mapping a prefetch does nothing.
      _mm_prefetch(reinterpret_cast<const char*>(from + ahead + line), _MM_HINT_T0);
      for (std::size_t i = 0; i < 4; ++i) {
        const auto* at = reinterpret_cast<const __m128i*>(from + line + 16 * i);
        sums[i] = _mm_xor_si128(sums[i], _mm_load_si128(at));
      }
    }
  }
  const __m128i all =
      _mm_xor_si128(_mm_xor_si128(sums[0], sums[1]), _mm_xor_si128(sums[2], sums[3]));
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(all));
}

}  // namespace

ReadLoop::ReadLoop(Crew& crew, std::size_t bytes)
    : crew_(crew), cursors_(crew.size()), tallies_(crew.size()) {
  KTD_CHECK(bytes >= crew.size() * kBetweenClocks, "a read loop needs ",
            crew.size() * kBetweenClocks, " bytes for ", crew.size(), " threads, not ", bytes);
  size_ = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  mapped_ = size_ + kHugePage;
  mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
  data_ = reinterpret_cast<std::uint8_t*>((address + kHugePage - 1) / kHugePage * kHugePage);
  static_cast<void>(madvise(mapping_, mapped_, MADV_HUGEPAGE));
  const std::size_t members = crew.size();
  crew.Run(members, [&](std::size_t member) {
    const std::size_t share = size_ / members;
    const std::size_t begin = member * share;
    std::memset(data_ + begin, 1, member + 1 == members ? size_ - begin : share);
  });
}

ReadLoop::~ReadLoop() { munmap(mapping_, mapped_); }

std::size_t ReadLoop::ReadRing(Cursor& cursor, std::size_t begin, std::size_t end, std::size_t at,
                               std::size_t bytes, std::size_t ahead) const noexcept {
  while (bytes > 0) {
    if (at >= end) at = begin;
    const std::size_t part = std::min(bytes, end - at);
    cursor.sum ^= Read(data_ + at, part, ahead);
    at += part;
    bytes -= part;
  }
  return at;
}

Rates ReadLoop::Rate(std::size_t members, double seconds, std::size_t ahead, double slice) {
  const std::size_t share = RoundDown(size_ / members, kStep);
  crew_.Run(members, [&](std::size_t member) {
    Cursor& cursor = cursors_[member];
    Tally& tally = tallies_[member];
    const std::size_t begin = member * share;
    const std::size_t end = begin + share;
    if (cursor.at < begin || cursor.at >= end) cursor.at = begin;
    tally.Start(Now(), OnCore());
    do {
      cursor.at = ReadRing(cursor, begin, end, cursor.at, kBetweenClocks, ahead);
    } while (tally.Next(Now(), seconds));
    tally.End(OnCore());
  });
  return RatesOf({tallies_.data(), members}, static_cast<double>(kBetweenClocks), slice);
}

std::vector<double> ReadLoop::Passes(std::size_t members, std::size_t bytes, double seconds,
                                     std::size_t ahead) {
  const std::size_t share = std::max(RoundDown(bytes / members, kStep), kStep);
  std::vector<double> times;
  times.reserve(kMostPasses);  // a member must not throw
  SpinBarrier barrier;
  bool more = true;  // member 0 writes it, the barrier publishes it
  crew_.Run(members, [&](std::size_t member) {
    Cursor& cursor = cursors_[member];
    std::size_t pass_at = pass_at_;
    const double start = Now();
    double before = start;
    while (true) {
      const std::size_t at = (pass_at + member * share) % size_;
      ReadRing(cursor, 0, size_, at, share, ahead);
      pass_at = (pass_at + members * share) % size_;
      barrier.Wait(members);
      if (member == 0) {
        const double now = Now();
        times.push_back(now - before);
        before = now;
        more = now - start < seconds && times.size() < kMostPasses;
        if (!more) pass_at_ = pass_at;
      }
      barrier.Wait(members);
      if (!more) return;
    }
  });
  return times;
}

}  // namespace ktd
