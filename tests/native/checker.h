// A test runner of one page: the build has no network, and this is all that the tests need.
//
//   TEST(ATokenIsNotLost) { EXPECT(1 + 1 == 2, "sum is ", 1 + 1); }
//
// A test that fails an EXPECT ends there. A test that calls SKIP is listed with its reason.
#pragma once

#include <stdexcept>
#include <string>

#include "check.h"

namespace ktd::testing {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Skipped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Puts a test on the list that main() runs, in the order of the files.
int Register(const char* name, void (*body)());

// The message of the std::exception of type E that `body` throws; fails if it does not.
template <class E, class Body>
std::string MessageOf(const Body& body) {
  try {
    body();
  } catch (const E& error) {
    return error.what();
  }
  throw Failure("nothing was thrown");
}

inline bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace ktd::testing

#define TEST(name)                                                            \
  static void name();                                                         \
  static const int name##_registered = ::ktd::testing::Register(#name, name); \
  static void name()

#define EXPECT(condition, ...)                                                                     \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      throw ::ktd::testing::Failure(                                                               \
          ::ktd::Concat(__FILE__, ":", __LINE__, ": ", #condition, " is false. ", ##__VA_ARGS__)); \
    }                                                                                              \
  } while (false)

#define SKIP(...) throw ::ktd::testing::Skipped(::ktd::Concat(__VA_ARGS__))
