// The CPU backend as JavaScript sees it (the interfaces are in src/native.ts).
//
// Only this file and the two headers that it shares with other backends' add-ons know Node-API. It has no global state:
// every worker thread loads its own.
#include <napi.h>

#include <array>
#include <numeric>
#include <stdexcept>
#include <string>

#include "backend.h"
#include "backend_object.h"
#include "dequantize.h"
#include "footprint.h"
#include "napi_arguments.h"

namespace {

using namespace moestream::cpu;

Napi::Value footprint_of(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Footprint bytes = footprint(read_config(info[0]));
    const Napi::Object result = Napi::Object::New(info.Env());
    result.Set("kvBytes", static_cast<double>(bytes.kv_bytes));
    result.Set("stateBytes", static_cast<double>(bytes.state_bytes));
    result.Set("scratchBytes", static_cast<double>(bytes.scratch_bytes));
    return result;
  });
}

void dequantize(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const TypeTraits* traits = find_type(type_id(info[0], "type"));
    const auto blocks = bytes_view(info[1], "blocks");
    const auto out = view<float>(info[2], "out", "a Float32Array");
    if (traits == nullptr) throw std::invalid_argument("this tensor type is not supported");
    const std::size_t values = blocks.size() / traits->block_bytes * traits->block_values;
    if (blocks.size() % traits->block_bytes != 0 || out.size() != values) {
      throw std::invalid_argument("blocks must be whole and out as long as their values");
    }
    row_dequantizer(traits->type)(blocks.data(), out.data(), values);
  });
}

Napi::Value instruction_sets(const Napi::CallbackInfo& info) {
  const Napi::Array names = Napi::Array::New(info.Env());
  for (const ProductKernels* each : all_product_kernels()) names.Set(names.Length(), each->name);
  return names;
}

const ProductKernels& kernels_named(const std::string& name) {
  for (const ProductKernels* each : all_product_kernels()) {
    if (name == each->name) return *each;
  }
  throw std::invalid_argument("this processor has no instruction set " + name);
}

// (type, precision, instruction set or '', weights, cols, rows, activations, activation rows, out)
void multiply(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const TypeTraits* traits = find_type(type_id(info[0], "type"));
    const std::string precision = info[1].ToString().Utf8Value();
    const std::string set = info[2].ToString().Utf8Value();
    const auto weights = bytes_view(info[3], "weights");
    const std::size_t cols = count(info[4], "cols");
    const std::size_t rows = count(info[5], "rows");
    const auto values = view<float>(info[6], "activations", "a Float32Array");
    const std::size_t inputs = count(info[7], "activationRows");
    const auto out = view<float>(info[8], "out", "a Float32Array");
    if (traits == nullptr || cols == 0 || cols % traits->block_values != 0) {
      throw std::invalid_argument("the type is not supported or cols are not whole blocks");
    }
    if (weights.size() != rows * row_bytes(traits->type, cols) || values.size() != inputs * cols ||
        out.size() != inputs * rows) {
      throw std::invalid_argument("the arrays do not fit rows and cols");
    }
    const bool exact = precision == "exact";
    ThreadPool pool(1);
    Layout layout;
    const auto floats = layout.take<float>({exact ? Multiplier::buffer_floats(1, cols) : 0});
    const auto bytes = layout.take<std::byte>({exact ? 0 : FastMultiplier::buffer_bytes(inputs, cols)});
    const auto indices = layout.take<std::uint32_t>({inputs});
    const Memory memory(layout.bytes());
    const auto order = memory.at(indices);
    std::iota(order.begin(), order.end(), 0u);
    const Multiplier multiplier =
        exact ? Multiplier(pool, memory.at(floats), cols)
              : Multiplier(FastMultiplier(pool, memory.at(bytes), set.empty() ? product_kernels() : kernels_named(set)),
                           pool);
    const std::array<Product, 1> product{{{Matrix{traits->type, cols, rows, weights.data()}, out.data()}}};
    multiplier.multiply(Activations(values, cols), {order, order}, product);
  });
}

Napi::Value vector_sets(const Napi::CallbackInfo& info) {
  const Napi::Array names = Napi::Array::New(info.Env());
  for (const VectorKernels* each : all_vector_kernels()) names.Set(names.Length(), each->name);
  return names;
}

const VectorKernels& vectors_named(const std::string& name) {
  for (const VectorKernels* each : all_vector_kernels()) {
    if (name == each->name) return *each;
  }
  throw std::invalid_argument("this processor has no instruction set " + name);
}

// (kv type, instruction set, rows, width, query, weights, stored bytes, products, sum): keeps the rows as keys and values
// are kept, then reads them as attention does.
void keep_rows(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const KvType type = kv_type_named(info[0]);
    const VectorKernels& set = vectors_named(info[1].ToString().Utf8Value());
    const auto rows = view<float>(info[2], "rows", "a Float32Array");
    const std::size_t width = count(info[3], "width");
    const auto query = view<float>(info[4], "query", "a Float32Array");
    const auto weights = view<float>(info[5], "weights", "a Float32Array");
    const auto stored = bytes_view(info[6], "stored");
    const auto products = view<float>(info[7], "products", "a Float32Array");
    const auto sum = view<float>(info[8], "sum", "a Float32Array");
    if (width == 0 || width % traits_of(tensor_type_of(type)).block_values != 0) {
      throw std::invalid_argument("a row must be whole blocks of its type");
    }
    const std::size_t bytes = row_bytes(tensor_type_of(type), width);
    const std::size_t positions = weights.size();
    if (rows.size() != positions * width || query.size() != width || stored.size() != positions * bytes ||
        products.size() != positions || sum.size() != width) {
      throw std::invalid_argument("the arrays do not fit width and weights");
    }
    const KvKernels& kernels = set.kv(type);
    for (std::size_t p = 0; p < positions; ++p) {
      kernels.store(rows.data() + p * width, width, stored.data() + p * bytes);
    }
    const KvRows kept{stored.data(), bytes, positions, width};
    kernels.dot_rows(query.data(), kept, products.data());
    kernels.sum_rows(kept, weights.data(), sum.data());
  });
}

Napi::Value supports_type(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), find_type(type_id(info[0], "type")) != nullptr);
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("Backend", BackendObject<Backend>::define(env));
  exports.Set("footprint", Napi::Function::New<footprint_of>(env, "footprint"));
  exports.Set("dequantize", Napi::Function::New<dequantize>(env, "dequantize"));
  exports.Set("instructionSets", Napi::Function::New<instruction_sets>(env, "instructionSets"));
  exports.Set("keepRows", Napi::Function::New<keep_rows>(env, "keepRows"));
  exports.Set("multiply", Napi::Function::New<multiply>(env, "multiply"));
  exports.Set("supportsType", Napi::Function::New<supports_type>(env, "supportsType"));
  exports.Set("vectorSets", Napi::Function::New<vector_sets>(env, "vectorSets"));
  return exports;
}

}  // namespace

NODE_API_MODULE(cpu, initialise)
