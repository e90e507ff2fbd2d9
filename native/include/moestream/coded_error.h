// Failures that the other language tells apart: `code` becomes `error.code` there, and is one of src/errors.ts.
#pragma once

#include <stdexcept>
#include <string>

namespace moestream {

class CodedError : public std::runtime_error {
 public:
  CodedError(const char* code, const std::string& sentence) : std::runtime_error(sentence), code_(code) {}

  const char* code() const { return code_; }

 private:
  const char* code_;
};

}  // namespace moestream
