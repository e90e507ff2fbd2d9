// The read add-on: the thin skin between file_reader, memory and JavaScript. No state: every reader thread loads it.
#include <napi.h>
#include <unistd.h>

#include <cstring>
#include <system_error>

#include "arguments.h"
#include "file_reader.h"
#include "memory.h"
#include "page_cache.h"
#include "uring_addon.h"
#include "wakeup.h"

namespace {

using moestream::io::cached_bytes;
using moestream::io::cached_pages;
using moestream::io::close_file;
using moestream::io::count_argument;
using moestream::io::direct_alignment_bytes;
using moestream::io::drop_cached;
using moestream::io::huge_page_bytes;
using moestream::io::fd_argument;
using moestream::io::lock_in_memory;
using moestream::io::open_file;
using moestream::io::prefault;
using moestream::io::read_at;
using moestream::io::system_failure;
using moestream::io::view_argument;

Napi::Value open(const Napi::CallbackInfo& info) {
  if (!info[0].IsString() || !info[1].IsBoolean()) throw Napi::TypeError::New(info.Env(), "open(path, direct)");
  try {
    const auto file = open_file(info[0].As<Napi::String>().Utf8Value(), info[1].As<Napi::Boolean>().Value());
    auto result = Napi::Object::New(info.Env());
    result.Set("fd", Napi::Number::New(info.Env(), file.fd));
    result.Set("sizeBytes", Napi::Number::New(info.Env(), static_cast<double>(file.size_bytes)));
    return result;
  } catch (const std::system_error& error) {
    throw system_failure(info.Env(), error);
  }
}

void close(const Napi::CallbackInfo& info) {
  try {
    close_file(fd_argument(info, 0));
  } catch (const std::system_error& error) {
    throw system_failure(info.Env(), error);
  }
}

Napi::Value read(const Napi::CallbackInfo& info) {
  const int fd = fd_argument(info, 0);
  const auto file_offset = count_argument(info, 1, "fileOffset");
  const auto byte_length = count_argument(info, 2, "byteLength");
  const auto view = view_argument(info, 3);
  const auto view_offset = count_argument(info, 4, "intoOffset");
  if (view_offset > view.size() || byte_length > view.size() - view_offset) {
    throw Napi::RangeError::New(info.Env(), "the read does not fit the view");
  }
  const auto into = view.subspan(static_cast<std::size_t>(view_offset), static_cast<std::size_t>(byte_length));
  return Napi::Number::New(info.Env(), static_cast<double>(read_at(fd, file_offset, into)));
}

Napi::Value direct_alignment(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), direct_alignment_bytes(fd_argument(info, 0)));
}

Napi::Value cached(const Napi::CallbackInfo& info) {
  const auto found = cached_pages(fd_argument(info, 0), count_argument(info, 1, "sizeBytes"),
                                  count_argument(info, 2, "samples"), count_argument(info, 3, "seed"));
  return Napi::Number::New(info.Env(), static_cast<double>(found));
}

void prefault_view(const Napi::CallbackInfo& info) {
  try {
    prefault(view_argument(info, 0));
  } catch (const std::system_error& error) {
    throw system_failure(info.Env(), error);
  }
}

Napi::Value huge_page_bytes_of_view(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(huge_page_bytes(view_argument(info, 0))));
}

Napi::Value huge_page_size_of_system(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(moestream::io::huge_page_size()));
}

// (view, boundaryBytes): how far the view's first address is from the next boundary.
Napi::Value bytes_to_boundary(const Napi::CallbackInfo& info) {
  const auto boundary = static_cast<std::uintptr_t>(count_argument(info, 1, "boundaryBytes"));
  const auto begin = reinterpret_cast<std::uintptr_t>(view_argument(info, 0).data());
  return Napi::Number::New(info.Env(), boundary == 0 ? 0.0 : static_cast<double>((boundary - begin % boundary) % boundary));
}

void lock_view(const Napi::CallbackInfo& info) {
  try {
    lock_in_memory(view_argument(info, 0));
  } catch (const std::system_error& error) {
    throw system_failure(info.Env(), error);
  }
}

Napi::Value release_view(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), moestream::io::release(view_argument(info, 0)));
}

Napi::Value cached_file(const Napi::CallbackInfo& info) {
  const int fd = fd_argument(info, 0);
  return Napi::Number::New(info.Env(), static_cast<double>(cached_bytes(fd, count_argument(info, 1, "sizeBytes"))));
}

Napi::Value drop(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), drop_cached(fd_argument(info, 0)));
}

Napi::Value page_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(sysconf(_SC_PAGESIZE)));
}

// The short name that people search for; strerror gives only the sentence.
Napi::Value errno_name(const Napi::CallbackInfo& info) {
  const int number = static_cast<int>(count_argument(info, 0, "errno"));
  struct Known {
    int number;
    const char* name;
  };
  constexpr Known known[] = {{EIO, "EIO"},         {EINVAL, "EINVAL"}, {EBADF, "EBADF"},   {ENOMEM, "ENOMEM"},
                             {EFAULT, "EFAULT"},   {ENXIO, "ENXIO"},   {EISDIR, "EISDIR"}, {ESTALE, "ESTALE"},
                             {ETIMEDOUT, "ETIMEDOUT"}, {ENODEV, "ENODEV"}, {EINTR, "EINTR"},   {EAGAIN, "EAGAIN"}};
  for (const auto& entry : known) {
    if (entry.number == number) return Napi::String::New(info.Env(), entry.name);
  }
  return Napi::String::New(info.Env(), "errno " + std::to_string(number) + " (" + std::strerror(number) + ")");
}

Napi::Value prompt_wakeup(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), moestream::io::prefer_prompt_wakeup());
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("open", Napi::Function::New<open>(env, "open"));
  exports.Set("close", Napi::Function::New<close>(env, "close"));
  exports.Set("readAt", Napi::Function::New<read>(env, "readAt"));
  exports.Set("directAlignment", Napi::Function::New<direct_alignment>(env, "directAlignment"));
  exports.Set("cachedPages", Napi::Function::New<cached>(env, "cachedPages"));
  exports.Set("prefault", Napi::Function::New<prefault_view>(env, "prefault"));
  exports.Set("hugePageBytes", Napi::Function::New<huge_page_bytes_of_view>(env, "hugePageBytes"));
  exports.Set("hugePageSize", Napi::Function::New<huge_page_size_of_system>(env, "hugePageSize"));
  exports.Set("bytesToBoundary", Napi::Function::New<bytes_to_boundary>(env, "bytesToBoundary"));
  exports.Set("lock", Napi::Function::New<lock_view>(env, "lock"));
  exports.Set("release", Napi::Function::New<release_view>(env, "release"));
  exports.Set("cachedBytes", Napi::Function::New<cached_file>(env, "cachedBytes"));
  exports.Set("dropCached", Napi::Function::New<drop>(env, "dropCached"));
  exports.Set("pageBytes", Napi::Function::New<page_bytes>(env, "pageBytes"));
  exports.Set("errnoName", Napi::Function::New<errno_name>(env, "errnoName"));
  exports.Set("preferPromptWakeup", Napi::Function::New<prompt_wakeup>(env, "preferPromptWakeup"));
  moestream::io::export_uring(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(io, init)
