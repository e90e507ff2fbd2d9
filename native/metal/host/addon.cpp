// The Metal backend as JavaScript sees it: the same object as the CPU's, what the device is, and one product for the
// self-test.
#include <napi.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "../../cpu/backend_object.h"
#include "../../cpu/napi_arguments.h"
#include "addon_extras.h"
#include "backend.h"
#include "products.h"

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

// (type, weights, cols, rows, activations, activation rows, out): the product that a model of this type would use.
void multiply(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const objc::Pool pool;
    const TypeTraits* traits = find_type(type_id(info[0], "type"));
    const auto weights = bytes_view(info[1], "weights");
    const std::size_t cols = count(info[2], "cols");
    const std::size_t rows = count(info[3], "rows");
    const auto values = view<float>(info[4], "activations", "a Float32Array");
    const std::size_t inputs = count(info[5], "activationRows");
    const auto out = view<float>(info[6], "out", "a Float32Array");
    if (traits == nullptr || cols == 0 || cols % traits->block_values != 0) {
      throw std::invalid_argument("the type is not supported or cols are not whole blocks");
    }
    if (weights.size() != rows * row_bytes(traits->type, cols) || values.size() != inputs * cols ||
        out.size() != inputs * rows) {
      throw std::invalid_argument("the arrays do not fit rows and cols");
    }
    const Device device = Device::system_default();
    Submission submission(device.queue());
    Kernels kernels(device);
    Products products(kernels);
    products.prepare(traits->type);
    const Buffer matrix = device.buffer(weights.size());
    const Buffer input = device.buffer(values.size_bytes());
    const Buffer output = device.buffer(out.size_bytes());
    std::memcpy(matrix.contents(), weights.data(), weights.size());
    std::memcpy(input.contents(), values.data(), values.size_bytes());
    const Product product{{traits->type, static_cast<std::uint32_t>(cols), static_cast<std::uint32_t>(rows), at(matrix)},
                          at(output)};
    Commands commands = submission.begin();
    products.multiply(commands, at(input), {at(input), at(input), inputs, false}, {&product, 1});
    submission.commit(std::move(commands));
    submission.wait();
    std::memcpy(out.data(), output.contents(), out.size_bytes());
  });
}

Napi::Value supports_type(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), find_type(type_id(info[0], "type")) != nullptr);
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("Backend", BackendObject<Backend>::define(env));
  exports.Set("footprint", Napi::Function::New<footprint_of>(env, "footprint"));
  exports.Set("device", Napi::Function::New<device>(env, "device"));
  exports.Set("multiply", Napi::Function::New<multiply>(env, "multiply"));
  exports.Set("supportsType", Napi::Function::New<supports_type>(env, "supportsType"));
  add_extras(env, exports);
  return exports;
}

}  // namespace
}  // namespace moestream::metal

namespace {

Napi::Object start(Napi::Env env, Napi::Object exports) { return moestream::metal::initialise(env, exports); }

}  // namespace

NODE_API_MODULE(metal, start)
