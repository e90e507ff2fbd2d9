// Rules that must always hold, checked in release builds too.
//
// A broken rule in native code means memory can no longer be trusted, so the process stops at once with the place and
// the rule; an exception could be caught and a wrong answer printed. Inputs are validated in TypeScript before they get
// here: reaching one of these is a bug in moestream, never a bad file. Not for inner loops.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <source_location>

namespace moestream {

[[noreturn]] inline void fail_invariant(const char* rule, const std::source_location& where) {
  std::fprintf(stderr, "moestream: broken invariant: %s (%s:%u)\n", rule, where.file_name(),
               static_cast<unsigned>(where.line()));
  std::abort();
}

inline void invariant(bool holds, const char* rule,
                      const std::source_location& where = std::source_location::current()) {
  if (!holds) fail_invariant(rule, where);
}

}  // namespace moestream
