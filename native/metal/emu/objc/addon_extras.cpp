// The emulator's controls for tests, as `emulator` of the add-on: what happened, and failures on demand.
#include "../../host/addon_extras.h"

#include <stdexcept>
#include <string>

#include "observation.h"
#include "objc_runtime.h"

namespace moestream::metal {
namespace {

using namespace moestream::fake;

// (log: boolean)
void reset(const Napi::CallbackInfo& info) { reset_observation(info[0].ToBoolean().Value()); }

Napi::Value counts(const Napi::CallbackInfo& info) {
  const Napi::Object result = Napi::Object::New(info.Env());
  const Counters& all = counters();
  const std::initializer_list<std::pair<const char*, const std::atomic<long>*>> named = {
      {"created", &all.created},     {"committed", &all.committed},   {"completed", &all.completed},
      {"failed", &all.failed},       {"discarded", &all.discarded},   {"waits", &all.waits},
      {"encoders", &all.encoders},   {"dispatches", &all.dispatches}, {"barriers", &all.barriers},
      {"residentBytes", &all.resident_bytes}};
  for (const auto& [name, value] : named) result.Set(name, static_cast<double>(value->load()));
  return result;
}

Napi::Value log(const Napi::CallbackInfo& info) {
  const Napi::Array result = Napi::Array::New(info.Env());
  for (const std::string& each : events()) result.Set(result.Length(), each);
  return result;
}

Napi::Value live(const Napi::CallbackInfo& info) {
  const Napi::Object result = Napi::Object::New(info.Env());
  for (const auto& [name, count] : live_objects()) result.Set(name, static_cast<double>(count));
  return result;
}

Failure failure_named(const std::string& name) {
  if (name == "internal") return Failure::kInternal;
  if (name == "timeout") return Failure::kTimeout;
  if (name == "memory") return Failure::kOutOfMemory;
  if (name == "removed") return Failure::kRemoved;
  throw std::invalid_argument("no failure is called " + name);
}

// (what: string, n or flag)
void inject(const Napi::CallbackInfo& info) {
  const std::string what = info[0].ToString().Utf8Value();
  const long number = static_cast<long>(info[1].ToNumber().Int64Value());
  Injection& one = injection();
  if (what == "dropBarrier") {
    one.drop_barrier = number;
  } else if (what == "dropBinding") {
    one.drop_binding = number;
  } else if (what == "noDevice") {
    one.no_device = number != 0;
  } else if (what == "refuseSource") {
    one.refuse_source = number != 0;
  } else {
    try {
      one.failure = failure_named(what);
    } catch (const std::exception& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
    one.fail_commit = number;
  }
}

}  // namespace

void add_extras(Napi::Env env, Napi::Object exports) {
  print_misuse(false);
  const Napi::Object emulator = Napi::Object::New(env);
  emulator.Set("reset", Napi::Function::New<reset>(env, "reset"));
  emulator.Set("counts", Napi::Function::New<counts>(env, "counts"));
  emulator.Set("events", Napi::Function::New<log>(env, "events"));
  emulator.Set("live", Napi::Function::New<live>(env, "live"));
  emulator.Set("inject", Napi::Function::New<inject>(env, "inject"));
  exports.Set("emulator", emulator);
}

}  // namespace moestream::metal
