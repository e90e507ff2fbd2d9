// Reading JavaScript arguments, and turning system errors into JavaScript ones: shared by the parts of the read add-on.
#pragma once

#include <napi.h>

#include <cstdint>
#include <span>
#include <string>
#include <system_error>

namespace moestream::io {

// JavaScript numbers are exact up to 2^53.
inline constexpr double largest_exact = 9007199254740992.0;

inline std::uint64_t count_of(const Napi::Value& argument, const char* name) {
  const double value = argument.IsNumber() ? argument.As<Napi::Number>().DoubleValue() : -1;
  if (!(value >= 0 && value <= largest_exact && value == static_cast<double>(static_cast<std::uint64_t>(value)))) {
    throw Napi::TypeError::New(argument.Env(), std::string("expected a non-negative integer for ") + name);
  }
  return static_cast<std::uint64_t>(value);
}

inline std::uint64_t count_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name) {
  return count_of(info[index], name);
}

inline int fd_argument(const Napi::CallbackInfo& info, std::size_t index) {
  return static_cast<int>(count_argument(info, index, "fd"));
}

inline std::span<std::byte> bytes_of(const Napi::Value& argument) {
  if (!argument.IsTypedArray()) throw Napi::TypeError::New(argument.Env(), "expected a Uint8Array");
  auto array = argument.As<Napi::Uint8Array>();
  return {reinterpret_cast<std::byte*>(array.Data()), array.ByteLength()};
}

inline std::span<std::byte> view_argument(const Napi::CallbackInfo& info, std::size_t index) {
  return bytes_of(info[index]);
}

// A system error becomes a JavaScript Error with `errno` and the system's words; TypeScript gives it code and hint.
inline Napi::Error system_failure(Napi::Env env, const std::system_error& error) {
  auto failure = Napi::Error::New(env, error.what());
  failure.Set("errno", Napi::Number::New(env, error.code().value()));
  return failure;
}

}  // namespace moestream::io
