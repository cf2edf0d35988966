// Every kernel against double precision and against its scalar twin, over lengths around the vector
// width, misalignments, and tile shapes.
#include <cmath>
#include <string>

#include "checker.h"
#include "kernels/kernel_table.h"
#include "moe_reference.h"

namespace ktd::testing {
namespace {

constexpr Bf16 kUntouched = 0x4321;

struct Shape {
  std::size_t length;  // of the sums
  std::size_t rows;    // of the expert
  std::size_t begin;   // rows asked for
  std::size_t end;
  std::size_t count;  // pairs
  std::size_t shift_w;
  std::size_t shift_x;
};

std::string Text(const Kernel& kernel, const Shape& s) {
  return Concat(kernel.name, ": length ", s.length, ", rows ", s.begin, " to ", s.end, " of ",
                s.rows, ", pairs ", s.count, ", weights off by ", s.shift_w, ", tokens by ",
                s.shift_x);
}

// Each pair's token: every third pair shares its token with the one before.
std::vector<std::int32_t> TokensOf(std::size_t count) {
  std::vector<std::int32_t> tokens;
  for (std::size_t p = 0; p < count; ++p) tokens.push_back(static_cast<std::int32_t>(p - p / 3));
  return tokens;
}

std::vector<Bf16> RunGateUp(const Kernel& kernel, const Shape& s, const Bf16* gate, const Bf16* up,
                            const Bf16* x, const std::vector<std::int32_t>& tokens) {
  std::vector<Bf16> act(s.count * s.rows, kUntouched);
  kernel.gate_up(
      {gate, up, s.length, s.begin, s.end, x, tokens.data(), s.count, act.data(), s.rows});
  return act;
}

void CheckGateUp(const Kernel& kernel, const Shape& s, std::mt19937& random) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.length));
  const Shifted gate(RandomBf16(random, s.rows * s.length, 2 * scale), s.shift_w);
  const Shifted up(RandomBf16(random, s.rows * s.length, scale), s.shift_w);
  const Shifted x(RandomBf16(random, (s.count + 1) * s.length, 1.0f), s.shift_x);
  const std::vector<std::int32_t> tokens = TokensOf(s.count);
  const auto act = RunGateUp(kernel, s, gate.data(), up.data(), x.data(), tokens);
  const auto twin = RunGateUp(KernelTable().back(), s, gate.data(), up.data(), x.data(), tokens);
  for (std::size_t p = 0; p < s.count; ++p) {
    const Bf16* token = x.data() + static_cast<std::size_t>(tokens[p]) * s.length;
    for (std::size_t row = 0; row < s.rows; ++row) {
      const Bf16 got = act[p * s.rows + row];
      if (row < s.begin || row >= s.end) {
        EXPECT(got == kUntouched, Text(kernel, s), ": wrote row ", row);
        continue;
      }
      const Bounded exact = ExactActivation(ExactDot(gate.data() + row * s.length, token, s.length),
                                            ExactDot(up.data() + row * s.length, token, s.length));
      EXPECT(IsRounded(got, exact), Text(kernel, s), ": pair ", p, " row ", row, " is ",
             ToDouble(got), ", not ", exact.value, " within ", exact.error);
      EXPECT(IsRounded(twin[p * s.rows + row], exact), "the scalar twin itself is off");
    }
  }
}

void CheckDown(const Kernel& kernel, const Shape& s, std::mt19937& random) {
  const Shifted down(RandomBf16(random, s.rows * s.length, 0.1f), s.shift_w);
  const Shifted act(RandomBf16(random, s.count * s.length, 1.0f), s.shift_x);
  const std::vector<std::int32_t> tokens = TokensOf(s.count);
  std::normal_distribution<float> normal;
  std::vector<float> weights(s.count);
  for (float& weight : weights) weight = normal(random);
  std::vector<float> before((s.count + 1) * s.rows);
  for (float& value : before) value = normal(random);
  std::vector<float> out = before;
  std::vector<float> twin = before;
  DownJob job{down.data(),   s.length,       s.begin, s.end,      act.data(), s.length,
              tokens.data(), weights.data(), s.count, out.data(), s.rows};
  kernel.down(job);
  job.out = twin.data();
  KernelTable().back().down(job);
  for (std::size_t token = 0; token <= s.count; ++token) {
    for (std::size_t row = 0; row < s.rows; ++row) {
      const std::size_t at = token * s.rows + row;
      if (row < s.begin || row >= s.end) {
        EXPECT(out[at] == before[at], Text(kernel, s), ": wrote row ", row);
        continue;
      }
      // Up to two pairs add to a token: each a product and an addition of its own.
      Bounded exact{before[at], 0};
      for (std::size_t p = 0; p < s.count; ++p) {
        if (static_cast<std::size_t>(tokens[p]) != token) continue;
        const Bounded dot =
            ExactDot(down.data() + row * s.length, act.data() + p * s.length, s.length);
        const double weight = weights[p];
        exact.value += weight * dot.value;
        exact.error += std::abs(weight) * dot.error +
                       0x1p-24 * (2 * std::abs(weight * dot.value) + std::abs(exact.value));
      }
      exact.error *= 1.01;  // second-order terms
      EXPECT(std::abs(out[at] - exact.value) <= exact.error, Text(kernel, s), ": token ", token,
             " row ", row, " is ", out[at], ", not ", exact.value, " within ", exact.error);
      EXPECT(std::abs(out[at] - twin[at]) <= 2 * exact.error, Text(kernel, s),
             ": differs from the scalar twin");
    }
  }
}

void Sweep(const char* name, void (*check)(const Kernel&, const Shape&, std::mt19937&)) {
  const Kernel& kernel = KernelOrSkip(name);
  std::mt19937 random(7);
  for (const std::size_t length : LengthsAround(32)) {
    for (const std::size_t shift_w : {0, 1, 17}) {
      for (const std::size_t shift_x : {0, 1, 30}) {
        check(kernel, {length, 7, 0, 7, 1, shift_w, shift_x}, random);
        check(kernel, {length, 5, 1, 4, 3, shift_w, shift_x}, random);
      }
    }
  }
  // Tiles of every height and width, their remainders, and more pairs and rows than a slab.
  for (const std::size_t count : {0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 64, 67, 131}) {
    for (const std::size_t rows : {1, 2, 3, 4, 8, 15, 41}) {
      check(kernel, {37, rows, 0, rows, count, 1, 1}, random);
    }
    check(kernel, {37, 41, 3, 40, count, 1, 1}, random);
    check(kernel, {37, 41, 9, 9, count, 1, 1}, random);
  }
}

}  // namespace

TEST(ScalarGateUpIsRight) { Sweep("scalar", CheckGateUp); }
TEST(ScalarDownIsRight) { Sweep("scalar", CheckDown); }
TEST(Avx2GateUpIsRight) { Sweep("avx2", CheckGateUp); }
TEST(Avx2DownIsRight) { Sweep("avx2", CheckDown); }
TEST(Avx512GateUpIsRight) { Sweep("avx512", CheckGateUp); }
TEST(Avx512DownIsRight) { Sweep("avx512", CheckDown); }
TEST(Avx512Bf16GateUpIsRight) { Sweep("avx512_bf16", CheckGateUp); }
TEST(Avx512Bf16DownIsRight) { Sweep("avx512_bf16", CheckDown); }

}  // namespace ktd::testing
