#include "uring_addon.h"

#include <memory>
#include <vector>

#include "arguments.h"
#include "uring.h"

namespace moestream::io {

namespace {

// One ring, owned by the worker thread that made it. Holds its views, so their memory outlives every read.
class UringReader : public Napi::ObjectWrap<UringReader> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "UringReader",
                       {InstanceMethod<&UringReader::queue_read>("queueRead"),
                        InstanceMethod<&UringReader::wait>("wait"), InstanceMethod<&UringReader::close>("close"),
                        InstanceAccessor<&UringReader::refused>("registeringRefused")});
  }

  // (depth, fds, segments, wakeFd)
  explicit UringReader(const Napi::CallbackInfo& info) : Napi::ObjectWrap<UringReader>(info) {
    const auto depth = static_cast<unsigned>(count_argument(info, 0, "depth"));
    if (!info[1].IsArray() || !info[2].IsArray()) throw Napi::TypeError::New(info.Env(), "expected fds and segments");
    const auto fd_array = info[1].As<Napi::Array>();
    const auto segment_array = info[2].As<Napi::Array>();
    std::vector<int> fds;
    for (std::uint32_t index = 0; index < fd_array.Length(); ++index) {
      fds.push_back(static_cast<int>(count_of(fd_array.Get(index), "fd")));
    }
    std::vector<std::span<std::byte>> segments;
    for (std::uint32_t index = 0; index < segment_array.Length(); ++index) {
      segments.push_back(bytes_of(segment_array.Get(index)));
    }
    segments_ = Napi::Persistent(segment_array.As<Napi::Object>());
    completions_.resize(depth);
    try {
      uring_ = std::make_unique<Uring>(depth, fds, segments, fd_argument(info, 3));
    } catch (const std::system_error& error) {
      throw system_failure(info.Env(), error);
    }
  }

 private:
  Uring& ring(Napi::Env env) {
    if (!uring_) throw Napi::Error::New(env, "the ring is closed");
    return *uring_;
  }

  // (id, file, fileOffset, segment, segmentOffset, byteLength)
  void queue_read(const Napi::CallbackInfo& info) {
    ring(info.Env()).queue_read(static_cast<std::uint32_t>(count_argument(info, 0, "id")),
                                static_cast<std::size_t>(count_argument(info, 1, "file")),
                                count_argument(info, 2, "fileOffset"),
                                static_cast<std::size_t>(count_argument(info, 3, "segment")),
                                static_cast<std::size_t>(count_argument(info, 4, "segmentOffset")),
                                static_cast<std::uint32_t>(count_argument(info, 5, "byteLength")));
  }

  // (timeoutMillis, out): writes (id, result) pairs and returns how many.
  Napi::Value wait(const Napi::CallbackInfo& info) {
    auto out = info[1].As<Napi::Int32Array>();
    const auto room = std::min(completions_.size(), out.ElementLength() / 2);
    try {
      const auto count = ring(info.Env()).wait(static_cast<std::uint32_t>(count_argument(info, 0, "timeoutMillis")),
                                               std::span(completions_).first(room));
      for (std::size_t index = 0; index < count; ++index) {
        out.Data()[2 * index] = static_cast<std::int32_t>(completions_[index].id);
        out.Data()[2 * index + 1] = completions_[index].result;
      }
      return Napi::Number::New(info.Env(), static_cast<double>(count));
    } catch (const std::system_error& error) {
      throw system_failure(info.Env(), error);
    }
  }

  void close(const Napi::CallbackInfo&) { uring_.reset(); }

  Napi::Value refused(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), ring(info.Env()).registering_refused());
  }

  std::unique_ptr<Uring> uring_;
  std::vector<UringCompletion> completions_;
  Napi::ObjectReference segments_;
};

Napi::Value refusal(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), uring_refusal()); }

Napi::Value make_wake_fd(const Napi::CallbackInfo& info) {
  try {
    return Napi::Number::New(info.Env(), create_wake_fd());
  } catch (const std::system_error& error) {
    throw system_failure(info.Env(), error);
  }
}

void signal(const Napi::CallbackInfo& info) { signal_wake_fd(fd_argument(info, 0)); }

}  // namespace

void export_uring(Napi::Env env, Napi::Object exports) {
  exports.Set("UringReader", UringReader::define(env));
  exports.Set("uringRefusal", Napi::Function::New<refusal>(env, "uringRefusal"));
  exports.Set("createWakeFd", Napi::Function::New<make_wake_fd>(env, "createWakeFd"));
  exports.Set("signalWakeFd", Napi::Function::New<signal>(env, "signalWakeFd"));
}

}  // namespace moestream::io
