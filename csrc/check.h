// KTD_CHECK: refuses a caller's mistake at the boundary (bindings, construction, arguments).
//
// The message is one sentence for a user: what is wrong, with the value, and what to do. Kernels
// check nothing; what they rely on has been checked before they run.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ktd {

// A failed KTD_CHECK. `file` points at a literal.
class CheckError : public std::invalid_argument {
 public:
  CheckError(const std::string& message, const char* file, int line)
      : std::invalid_argument(message), file_(file), line_(line) {}

  const char* file() const noexcept { return file_; }
  int line() const noexcept { return line_; }

 private:
  const char* file_;
  int line_;
};

template <class... Parts>
std::string Concat(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

}  // namespace ktd

#define KTD_CHECK(condition, ...)                                              \
  do {                                                                         \
    if (!(condition)) [[unlikely]] {                                           \
      throw ::ktd::CheckError(::ktd::Concat(__VA_ARGS__), __FILE__, __LINE__); \
    }                                                                          \
  } while (false)
