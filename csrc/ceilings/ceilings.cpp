#include "ceilings.h"

#include "../check.h"
#include "../cpu_features.h"

namespace ktd {
namespace {

// Three cycles a multiplication on every x86-64 core since 2008; a chain of additions would not do,
// since newer ones skip those while renaming.
void RunClock(std::uint64_t rounds) noexcept {
  std::uint64_t value = 3;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    __asm__ volatile(
        "imul %0, %0\n\timul %0, %0\n\timul %0, %0\n\timul %0, %0\n\t"
        "imul %0, %0\n\timul %0, %0\n\timul %0, %0\n\timul %0, %0\n\t"
        : "+r"(value));
  }
}

const PeakLoop kClock{"clock", 0, 8 * 3.0, 4000, &RunClock};

const PeakLoop& LoopCalled(std::string_view name) {
  for (const PeakLoop* loop : PeakLoops()) {
    if (name == loop->name) return *loop;
  }
  KTD_CHECK(false, "there is no peak called '", name, "'");
  return kClock;
}

}  // namespace

const std::vector<const PeakLoop*>& PeakLoops() {
  static const std::vector<const PeakLoop*> loops = {
      &kPeakSse2F32,     &kPeakAvx2F32,    &kPeakAvx2Int16,  &kPeakAvxVnniInt8, &kPeakAvx512F32,
      &kPeakAvx512Int16, &kPeakAvx512Bf16, &kPeakAvx512Int8, &kPeakAmxBf16,     &kPeakAmxInt8};
  return loops;
}

Ceilings::Ceilings(const std::vector<int>& cpus, std::size_t bytes)
    : crew_(cpus), read_(crew_, bytes), tallies_(crew_.size()) {}

void Ceilings::CheckThreads(std::size_t threads) const {
  KTD_CHECK(threads >= 1 && threads <= crew_.size(), "a ceiling of ", threads,
            " threads cannot be measured: there are ", crew_.size());
}

Rates Ceilings::ReadRate(std::size_t threads, double seconds, std::size_t ahead, double slice) {
  CheckThreads(threads);
  return read_.Rate(threads, seconds, ahead, slice);
}

std::vector<double> Ceilings::ReadPasses(std::size_t threads, std::size_t bytes, double seconds,
                                         std::size_t ahead) {
  CheckThreads(threads);
  return read_.Passes(threads, bytes, seconds, ahead);
}

Rates Ceilings::PeakRate(std::string_view name, std::size_t threads, double seconds, double slice) {
  CheckThreads(threads);
  const PeakLoop& loop = LoopCalled(name);
  const CpuFeatures missing = loop.required & ~DetectCpuFeatures();
  KTD_CHECK(missing == 0, "the peak ", name, " cannot be measured: this CPU lacks ",
            FeatureNames(missing).front());
  return LoopRate(loop, threads, seconds, slice);
}

double Ceilings::CoreHz(double seconds) {
  return LoopRate(kClock, 1, seconds, seconds / 16).typical;
}

Rates Ceilings::LoopRate(const PeakLoop& loop, std::size_t threads, double seconds, double slice) {
  crew_.Run(threads, [&](std::size_t member) {
    Tally& tally = tallies_[member];
    tally.Start(Now(), OnCore());
    do {
      loop.run(loop.rounds);
    } while (tally.Next(Now(), seconds));
    tally.End(OnCore());
  });
  const double amount = loop.operations * static_cast<double>(loop.rounds);
  return RatesOf({tallies_.data(), threads}, amount, slice);
}

}  // namespace ktd
