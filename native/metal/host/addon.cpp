// The Metal backend as JavaScript sees it: the same object as the CPU's, what the device is, and its self-test.
#include <napi.h>

#include <memory>
#include <stdexcept>

#include "../../cpu/backend_object.h"
#include "../../cpu/napi_arguments.h"
#include "addon_extras.h"
#include "backend.h"
#include "device_checks.h"

namespace moestream::metal {
namespace {

using namespace cpu;

Napi::Value footprint_of(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Footprint bytes = metal::footprint(read_config(info[0]));
    const Napi::Object result = Napi::Object::New(info.Env());
    result.Set("kvBytes", static_cast<double>(bytes.kv_bytes));
    result.Set("stateBytes", static_cast<double>(bytes.state_bytes));
    result.Set("scratchBytes", static_cast<double>(bytes.scratch_bytes));
    return result;
  });
}

Napi::Value device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const objc::Pool pool;
    const Device found = Device::system_default();
    const Napi::Object result = Napi::Object::New(info.Env());
    result.Set("name", found.name());
    result.Set("unifiedMemory", found.unified_memory());
    result.Set("maxBufferBytes", static_cast<double>(found.max_buffer_bytes()));
    result.Set("workingSetBytes", static_cast<double>(found.working_set_bytes()));
    result.Set("residencySets", static_cast<bool>(found.residency_set()));
    return result;
  });
}

// The device's checks, one after the other: new KernelChecks() compiles the kernels.
class KernelChecks : public Napi::ObjectWrap<KernelChecks> {
 public:
  explicit KernelChecks(const Napi::CallbackInfo& info) : Napi::ObjectWrap<KernelChecks>(info) {
    guarded(info.Env(), [&] {
      const objc::Pool pool;
      checks_ = std::make_unique<DeviceChecks>();
    });
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "KernelChecks",
                       {InstanceMethod<&KernelChecks::list>("list"), InstanceMethod<&KernelChecks::run>("run")});
  }

 private:
  Napi::Value list(const Napi::CallbackInfo& info) {
    const Napi::Array result = Napi::Array::New(info.Env());
    for (const gpu::Check& each : checks_->all()) {
      const Napi::Object entry = Napi::Object::New(info.Env());
      entry.Set("kernel", each.kernel);
      entry.Set("shape", each.shape);
      entry.Set("tolerance", each.tolerance);
      result.Set(result.Length(), entry);
    }
    return result;
  }

  // (index): how far the results are from the CPU's
  Napi::Value run(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const objc::Pool pool;
      const std::size_t index = count(info[0], "index");
      if (index >= checks_->all().size()) throw std::out_of_range("no such check");
      return Napi::Number::New(info.Env(), checks_->run(checks_->all()[index]));
    });
  }

  std::unique_ptr<DeviceChecks> checks_;
};

Napi::Value supports_type(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), find_type(type_id(info[0], "type")) != nullptr);
}

Napi::Value alignment_of_type(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const cpu::TypeTraits* const traits = find_type(type_id(info[0], "type"));
    if (traits == nullptr) throw std::invalid_argument("no kernel reads this type");
    return Napi::Number::New(info.Env(), static_cast<double>(alignment_of(traits->type)));
  });
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("Backend", BackendObject<Backend>::define(env));
  exports.Set("footprint", Napi::Function::New<footprint_of>(env, "footprint"));
  exports.Set("device", Napi::Function::New<device>(env, "device"));
  exports.Set("KernelChecks", KernelChecks::define(env));
  exports.Set("supportsType", Napi::Function::New<supports_type>(env, "supportsType"));
  exports.Set("alignmentOf", Napi::Function::New<alignment_of_type>(env, "alignmentOf"));
  add_extras(env, exports);
  return exports;
}

}  // namespace
}  // namespace moestream::metal

namespace {

Napi::Object start(Napi::Env env, Napi::Object exports) { return moestream::metal::initialise(env, exports); }

}  // namespace

NODE_API_MODULE(metal, start)
