// The formats of format_case.h: how bytes are made and what they mean.
#include "check.h"
#include "format_case.h"
#include "formats_4bit.h"
#include "formats_8bit.h"

namespace ktd::testing {
namespace {

class Bf16Format final : public TestFormat {
 public:
  Encoded Encode(std::size_t rows, std::size_t columns, float scale,
                 std::mt19937& random) const override {
    const std::vector<Bf16> values = RandomBf16(random, rows * columns, scale);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data());
    Encoded encoded;
    encoded.weights.assign(bytes, bytes + values.size() * sizeof(Bf16));
    for (const Bf16 value : values) encoded.dense.push_back(ToDouble(value));
    return encoded;
  }
};

}  // namespace

const TestFormat& FormatOf(WeightFormat format, int variant) {
  static const Bf16Format bf16;
  if (const TestFormat* found = FourBitFormat(format, variant)) return *found;
  if (const TestFormat* found = EightBitFormat(format)) return *found;
  switch (format) {
    case WeightFormat::kBf16:
      return bf16;
    default:
      throw CheckError("no test knows this format", __FILE__, __LINE__);
  }
}

}  // namespace ktd::testing
