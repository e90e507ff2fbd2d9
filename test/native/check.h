// The smallest frame for native tests: says what failed and where, counts, and gives the exit code.
#pragma once

#include <cstdio>
#include <source_location>

namespace moestream::test {

inline int& failures() {
  static int count = 0;
  return count;
}

// From one thread.
inline void check(bool holds, const char* what, const std::source_location& where = std::source_location::current()) {
  if (holds) return;
  ++failures();
  std::printf("FAILED: %s (%s:%u)\n", what, where.file_name(), static_cast<unsigned>(where.line()));
}

template <class Error, class Work>
bool throws(const Work& work) {
  try {
    work();
  } catch (const Error&) {
    return true;
  }
  return false;
}

inline int result(const char* name) {
  std::printf("%s: %s\n", name, failures() == 0 ? "passed" : "FAILED");
  return failures() == 0 ? 0 : 1;
}

}  // namespace moestream::test
