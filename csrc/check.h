// KTD_CHECK: refuses a caller's mistake at the boundary (bindings, construction, arguments).
//
// The message is one sentence for a user: what is wrong, with the value, and what to do. Kernels
// check nothing; what they rely on has been checked before they run.
#pragma once

#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

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

inline void Append(std::string& text, std::string_view part) { text.append(part); }
inline void Append(std::string& text, char part) { text.push_back(part); }
template <class Number>
  requires std::integral<Number> || std::floating_point<Number>
void Append(std::string& text, Number part) {
  text.append(std::to_string(part));
}

// No streams here, nor anywhere in the extension: PyTorch's libraries carry stream code of another
// libstdc++, and with it loaded first a std::ifstream crashed (torch 2.11, GCC 13).
template <class... Parts>
std::string Concat(const Parts&... parts) {
  std::string text;
  (Append(text, parts), ...);
  return text;
}

}  // namespace ktd

#define KTD_CHECK(condition, ...)                                              \
  do {                                                                         \
    if (!(condition)) [[unlikely]] {                                           \
      throw ::ktd::CheckError(::ktd::Concat(__VA_ARGS__), __FILE__, __LINE__); \
    }                                                                          \
  } while (false)
