// The CPU backend as JavaScript sees it (the interfaces are in src/native.ts).
//
// Only this file and the two headers that it shares with other backends' add-ons know Node-API. It has no global state:
// every worker thread loads its own.
#include <napi.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend.h"
#include "backend_object.h"
#include "footprint.h"
#include "napi_arguments.h"
#include "quantize.h"
#include "router_probe.h"
#include "row_reader.h"

namespace {

using namespace moestream::cpu;

class RouterProbeObject : public Napi::ObjectWrap<RouterProbeObject> {
 public:
  // (layers, hidden, experts, rmsEpsilon)
  explicit RouterProbeObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<RouterProbeObject>(info) {
    guarded(info.Env(), [&] {
      if (!info[3].IsNumber()) throw type_error(info.Env(), "rmsEpsilon", "a number");
      hidden_ = count(info[1], "hidden");
      probe_ = std::make_unique<RouterProbe>(count(info[0], "layers"), hidden_, count(info[2], "experts"),
                                             info[3].As<Napi::Number>().FloatValue());
    });
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "RouterProbe",
                       {
                           InstanceMethod<&RouterProbeObject::set_layer>("setLayer"),
                           InstanceMethod<&RouterProbeObject::probe>("probe"),
                       });
  }

 private:
  // (layer, norm type, norm bytes, router type, router rows, router bytes[, scales, biases])
  void set_layer(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const Matrix norm = matrix(info[1], 1, info[2], "norm");
      Matrix router = matrix(info[3], count(info[4], "rows"), info[5], "router");
      if (is_affine(norm.type) || is_affine(router.type) != (info.Length() > 6)) {
        throw std::invalid_argument("scales and biases come with affine routers and with nothing else");
      }
      if (is_affine(router.type)) {
        const std::size_t side_bytes = router.rows * side_row_bytes(router.type, hidden_);
        const auto scales = bytes_view(info[6], "scales");
        const auto biases = bytes_view(info[7], "biases");
        if (scales.size() != side_bytes || biases.size() != side_bytes) {
          throw std::invalid_argument("the bytes of scales and biases do not fit the router");
        }
        router.scales = scales.data();
        router.biases = biases.data();
      }
      std::vector<float> values(hidden_);
      row_dequantizer(norm.type)(norm.data, values.data(), hidden_);
      probe_->set_layer(count(info[0], "layer"), values, router);
      for (std::size_t view = 5; view < info.Length(); ++view) {
        tensors_.push_back(Napi::Reference<Napi::Value>::New(info[view], 1));
      }
    });
  }

  // (layer, streams, first float, ids, first id, ids of one row)
  void probe(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const auto streams = view<float>(info[1], "streams", "a Float32Array");
      const std::size_t first = count(info[2], "firstFloat");
      const auto ids = view<std::int32_t>(info[3], "ids", "an Int32Array");
      const std::size_t first_id = count(info[4], "firstId");
      const std::size_t wanted = count(info[5], "wanted");
      if (first > streams.size() || hidden_ > streams.size() - first || first_id > ids.size() ||
          wanted > ids.size() - first_id) {
        throw std::invalid_argument("the arrays do not fit a row");
      }
      probe_->probe(count(info[0], "layer"), streams.subspan(first, hidden_), ids.subspan(first_id, wanted));
    });
  }

  Matrix matrix(const Napi::Value& type, std::size_t rows, const Napi::Value& bytes, const char* what) const {
    const TypeTraits* traits = find_type(type_id(type, what));
    const auto memory = bytes_view(bytes, what);
    if (traits == nullptr || hidden_ % traits->block_values != 0 ||
        memory.size() != rows * row_bytes(traits->type, hidden_)) {
      throw std::invalid_argument(std::string("the bytes of the ") + what + " do not fit its shape");
    }
    return Matrix{traits->type, hidden_, rows, memory.data()};
  }

  std::size_t hidden_ = 0;
  std::unique_ptr<RouterProbe> probe_;
  std::vector<Napi::Reference<Napi::Value>> tensors_;
};

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
    const std::size_t block_bytes = traits->block_bytes + 2 * traits->side_bytes;
    const std::size_t values = blocks.size() / block_bytes * traits->block_values;
    if (blocks.size() % block_bytes != 0 || out.size() != values) {
      throw std::invalid_argument("blocks must be whole and out as long as their values");
    }
    if (values > 0) RowReader(joined_matrix(traits->type, values, 1, blocks.data())).read(0, out.data());
  });
}

void quantize_values(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const TypeTraits* traits = find_type(type_id(info[0], "type"));
    const auto values = view<float>(info[1], "values", "a Float32Array");
    const auto blocks = bytes_view(info[2], "blocks");
    if (traits == nullptr || !can_quantize(traits->type)) {
      throw std::invalid_argument("nothing is quantised to this tensor type");
    }
    const std::size_t block_bytes = traits->block_bytes + 2 * traits->side_bytes;
    if (values.size() % traits->block_values != 0 || blocks.size() != values.size() / traits->block_values * block_bytes) {
      throw std::invalid_argument("values must be whole blocks and blocks as long as they take");
    }
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
      throw std::invalid_argument("a value is not finite");
    }
    quantize(traits->type, values, blocks);
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
    if (weights.size() != joined_bytes(traits->type, cols, rows) || values.size() != inputs * cols ||
        out.size() != inputs * rows) {
      throw std::invalid_argument("the arrays do not fit rows and cols");
    }
    const bool exact = precision == "exact";
    ThreadPool pool(1, 0);
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
    const std::array<Product, 1> product{{{joined_matrix(traits->type, cols, rows, weights.data()), out.data()}}};
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
  exports.Set("RouterProbe", RouterProbeObject::define(env));
  exports.Set("footprint", Napi::Function::New<footprint_of>(env, "footprint"));
  exports.Set("dequantize", Napi::Function::New<dequantize>(env, "dequantize"));
  exports.Set("instructionSets", Napi::Function::New<instruction_sets>(env, "instructionSets"));
  exports.Set("keepRows", Napi::Function::New<keep_rows>(env, "keepRows"));
  exports.Set("multiply", Napi::Function::New<multiply>(env, "multiply"));
  exports.Set("quantize", Napi::Function::New<quantize_values>(env, "quantize"));
  exports.Set("supportsType", Napi::Function::New<supports_type>(env, "supportsType"));
  exports.Set("vectorSets", Napi::Function::New<vector_sets>(env, "vectorSets"));
  return exports;
}

}  // namespace

NODE_API_MODULE(cpu, initialise)
