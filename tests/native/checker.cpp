#include "checker.h"

#include <cstdio>
#include <cstring>
#include <vector>

namespace ktd::testing {
namespace {

struct Entry {
  const char* name;
  void (*body)();
};

std::vector<Entry>& Entries() {
  static std::vector<Entry> entries;
  return entries;
}

int RunAll(const char* filter) {
  int passed = 0;
  int failed = 0;
  int skipped = 0;
  for (const Entry& entry : Entries()) {
    if (filter != nullptr && std::strstr(entry.name, filter) == nullptr) continue;
    try {
      entry.body();
      ++passed;
    } catch (const Skipped& reason) {
      ++skipped;
      std::printf("SKIPPED %s: %s\n", entry.name, reason.what());
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED  %s\n        %s\n", entry.name, error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d passed, %d skipped, %d failed\n", passed, skipped, failed);
  return failed != 0 || passed + skipped == 0 ? 1 : 0;
}

}  // namespace

int Register(const char* name, void (*body)()) {
  Entries().push_back({name, body});
  return 0;
}

}  // namespace ktd::testing

// An argument runs only the tests whose name contains it.
int main(int argc, char** argv) { return ktd::testing::RunAll(argc > 1 ? argv[1] : nullptr); }
