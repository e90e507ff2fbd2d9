// The CPU backend as JavaScript sees it (the interfaces are in src/native.ts).
//
// Only this file knows Node-API. It turns arguments into the backend's types, keeps a reference to every view it is
// given so that no memory is collected under a step, and turns C++ exceptions into JavaScript errors: TypeError for
// arguments of a wrong kind, Error for everything else. It has no global state: every worker thread loads its own.
#include <napi.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "footprint.h"
#include "quantize.h"
#include "router_probe.h"
#include "row_reader.h"
#include "saved_sequence.h"

namespace {

using namespace moestream::cpu;

constexpr double kMaxInteger = 9007199254740991.0;  // 2^53 - 1

Napi::TypeError type_error(Napi::Env env, const std::string& what, const char* kind) {
  return Napi::TypeError::New(env, what + " must be " + kind);
}

// An integer from `lowest` to 2^53 - 1.
std::int64_t integer(const Napi::Value& value, const std::string& what, double lowest = 0) {
  const bool is_number = value.IsNumber();
  const double number = is_number ? value.As<Napi::Number>().DoubleValue() : 0;
  if (!is_number || number != std::trunc(number) || number < lowest || number > kMaxInteger) {
    throw type_error(value.Env(), what, lowest < 0 ? "an integer" : "a non-negative integer");
  }
  return static_cast<std::int64_t>(number);
}

std::size_t count(const Napi::Value& value, const std::string& what) {
  return static_cast<std::size_t>(integer(value, what));
}

std::uint32_t type_id(const Napi::Value& value, const std::string& what) {
  const std::int64_t id = integer(value, what);
  if (id > 0xffffffff) throw type_error(value.Env(), what, "a ggml type id");
  return static_cast<std::uint32_t>(id);
}

template <class Element>
constexpr napi_typedarray_type kArrayType = napi_uint8_array;
template <>
constexpr napi_typedarray_type kArrayType<std::int32_t> = napi_int32_array;
template <>
constexpr napi_typedarray_type kArrayType<float> = napi_float32_array;

// The memory of a typed array. Views over shared memory are fine; shared memory itself is not (Node 20 refuses it).
template <class Element>
std::span<Element> view(const Napi::Value& value, const std::string& what, const char* kind) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != kArrayType<Element>) {
    throw type_error(value.Env(), what, kind);
  }
  auto array = value.As<Napi::TypedArrayOf<Element>>();
  return {array.Data(), array.ElementLength()};
}

std::span<std::uint8_t> bytes_view(const Napi::Value& value, const std::string& what) {
  return view<std::uint8_t>(value, what, "a Uint8Array");
}

class ConfigReader {
 public:
  explicit ConfigReader(const Napi::Value& value) {
    if (!value.IsObject()) throw type_error(value.Env(), "config", "an object");
    object_ = value.As<Napi::Object>();
  }

  Napi::Value member(const char* name) const { return object_.Get(name); }
  std::size_t size(const char* name) const { return count(member(name), name); }

  // A member that may be left out.
  std::size_t size_or(const char* name, std::size_t usual) const {
    return member(name).IsUndefined() ? usual : size(name);
  }

  double number(const char* name) const {
    if (!member(name).IsNumber()) throw type_error(object_.Env(), name, "a number");
    return member(name).As<Napi::Number>().DoubleValue();
  }

  bool flag(const char* name) const {
    if (!member(name).IsBoolean()) throw type_error(object_.Env(), name, "a boolean");
    return member(name).As<Napi::Boolean>().Value();
  }

 private:
  Napi::Object object_;
};

Precision read_precision(const ConfigReader& reader) {
  const Napi::Value precision = reader.member("precision");
  const std::string name = precision.IsString() ? precision.As<Napi::String>().Utf8Value() : "";
  if (name == "exact") return Precision::kExact;
  if (name == "fast") return Precision::kFast;
  throw type_error(precision.Env(), "precision", "'exact' or 'fast'");
}

KvType kv_type_named(const Napi::Value& value) {
  const std::string name = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  if (name == "f32") return KvType::kF32;
  if (name == "f16") return KvType::kF16;
  if (name == "q8_0") return KvType::kQ8_0;
  throw type_error(value.Env(), "kvType", "'f32', 'f16' or 'q8_0'");
}

ModelConfig read_config(const Napi::Value& value) {
  const ConfigReader reader(value);
  const Precision precision = read_precision(reader);
  const KvType kv_type = kv_type_named(reader.member("kvType"));
  const auto attention_layers = bytes_view(reader.member("attentionLayers"), "attentionLayers");
  return ModelConfig{
      .layers = reader.size("layers"),
      .hidden = reader.size("hidden"),
      .vocabulary = reader.size("vocabulary"),
      .rms_epsilon = static_cast<float>(reader.number("rmsEpsilon")),
      .attention_layers = {attention_layers.begin(), attention_layers.end()},
      .heads = reader.size("heads"),
      .kv_heads = reader.size("kvHeads"),
      .head_dim = reader.size("headDim"),
      .rotary_dims = reader.size("rotaryDims"),
      .rope_theta = reader.number("ropeTheta"),
      .gated_attention = reader.flag("gatedAttention"),
      .delta_key_heads = reader.size("deltaKeyHeads"),
      .delta_value_heads = reader.size("deltaValueHeads"),
      .delta_head_dim = reader.size("deltaHeadDim"),
      .conv_kernel = reader.size("convKernel"),
      .tiled_value_heads = reader.flag("tiledValueHeads"),
      .experts = reader.size("experts"),
      .experts_per_token = reader.size("expertsPerToken"),
      .expert_width = reader.size("expertWidth"),
      .shared_width = reader.size("sharedWidth"),
      .max_rows = reader.size("maxRows"),
      .max_sequences = reader.size("maxSequences"),
      .context_length = reader.size("contextLength"),
      .threads = reader.size("threads"),
      .spins = reader.size_or("spins", ModelConfig{}.spins),
      .precision = precision,
      .kv_type = kv_type,
  };
}

// Runs `work`; what it throws reaches JavaScript as an Error with the same words.
template <class Work>
auto guarded(Napi::Env env, const Work& work) {
  try {
    return work();
  } catch (const Napi::Error&) {
    throw;
  } catch (const StateRefused& refused) {
    const Napi::Error error = Napi::Error::New(env, refused.what());
    error.Set("code", Napi::String::New(env, "STATE_REFUSED"));
    throw error;
  } catch (const std::bad_alloc&) {
    throw Napi::Error::New(env, "the system has no memory for the backend's buffers");
  } catch (const std::exception& error) {
    throw Napi::Error::New(env, error.what());
  }
}

class BackendObject : public Napi::ObjectWrap<BackendObject> {
 public:
  explicit BackendObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<BackendObject>(info) {
    guarded(info.Env(), [&] { backend_ = std::make_unique<Backend>(read_config(info[0])); });
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Backend",
                       {
                           InstanceMethod<&BackendObject::set_tensor>("setTensor"),
                           InstanceMethod<&BackendObject::set_expert_types>("setExpertTypes"),
                           InstanceMethod<&BackendObject::seal>("seal"),
                           InstanceMethod<&BackendObject::bind_rows>("bindRows"),
                           InstanceMethod<&BackendObject::bind_routes>("bindRoutes"),
                           InstanceMethod<&BackendObject::bind_slab>("bindSlab"),
                           InstanceMethod<&BackendObject::bind_logits>("bindLogits"),
                           InstanceMethod<&BackendObject::reset_sequence>("resetSequence"),
                           InstanceMethod<&BackendObject::copy_sequence>("copySequence"),
                           InstanceMethod<&BackendObject::save_sequence>("saveSequence"),
                           InstanceMethod<&BackendObject::restore_sequence>("restoreSequence"),
                           InstanceMethod<&BackendObject::sequence_bytes>("sequenceBytes"),
                           InstanceMethod<&BackendObject::begin>("begin"),
                           InstanceMethod<&BackendObject::mix>("mix"),
                           InstanceMethod<&BackendObject::copy_stream>("copyStream"),
                           InstanceMethod<&BackendObject::shared>("shared"),
                           InstanceMethod<&BackendObject::expert>("expert"),
                           InstanceMethod<&BackendObject::combine>("combine"),
                           InstanceMethod<&BackendObject::logits>("logits"),
                           InstanceMethod<&BackendObject::close>("close"),
                       });
  }

 private:
  void set_tensor(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      if (!info[0].IsString()) throw type_error(info.Env(), "name", "a string");
      const std::string name = info[0].As<Napi::String>().Utf8Value();
      TensorBytes bytes{bytes_view(info[5], "bytes"), {}, {}};
      if (info.Length() > 6) {
        bytes.scales = bytes_view(info[6], "scales");
        bytes.biases = bytes_view(info[7], "biases");
      }
      open().unsealed_weights().set(name, integer(info[1], "layer", -1), type_id(info[2], "type"),
                                    count(info[3], "cols"), count(info[4], "rows"), bytes);
      for (std::size_t view = 5; view < info.Length(); ++view) tensors_.push_back(keep(info[view]));
    });
  }

  void set_expert_types(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      open().unsealed_weights().set_expert_types(count(info[0], "layer"), type_id(info[1], "gateType"),
                                                 type_id(info[2], "upType"), type_id(info[3], "downType"));
    });
  }

  void seal(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { open().seal(); });
  }

  void bind_rows(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      open().bind_rows(view<std::int32_t>(info[0], "rows", "an Int32Array"));
      rows_ = keep(info[0]);
    });
  }

  void bind_routes(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      open().bind_routes(view<std::int32_t>(info[0], "ids", "an Int32Array"),
                         view<float>(info[1], "weights", "a Float32Array"));
      route_ids_ = keep(info[0]);
      route_weights_ = keep(info[1]);
    });
  }

  void bind_slab(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      if (!info[0].IsArray()) throw type_error(info.Env(), "segments", "an array");
      const Napi::Array array = info[0].As<Napi::Array>();
      std::vector<std::span<const std::uint8_t>> segments;
      std::vector<Napi::Reference<Napi::Value>> references;
      for (std::uint32_t i = 0; i < array.Length(); ++i) {
        const Napi::Value segment = array.Get(i);
        segments.push_back(bytes_view(segment, "segments[" + std::to_string(i) + "]"));
        references.push_back(keep(segment));
      }
      open().bind_slab(std::move(segments));
      slab_ = std::move(references);
    });
  }

  void bind_logits(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      open().bind_logits(view<float>(info[0], "logits", "a Float32Array"));
      logits_ = keep(info[0]);
    });
  }

  void reset_sequence(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { open().reset_sequence(count(info[0], "sequence")); });
  }

  void copy_sequence(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { open().copy_sequence(count(info[0], "from"), count(info[1], "to")); });
  }

  Napi::Value save_sequence(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const std::size_t bytes = open().save_sequence(count(info[0], "sequence"), bytes_view(info[1], "into"));
      return Napi::Number::New(info.Env(), static_cast<double>(bytes));
    });
  }

  void restore_sequence(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { open().restore_sequence(count(info[0], "sequence"), bytes_view(info[1], "from")); });
  }

  Napi::Value sequence_bytes(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      return Napi::Number::New(info.Env(), static_cast<double>(open().sequence_bytes(count(info[0], "positions"))));
    });
  }

  void begin(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { open().begin(count(info[0], "rowCount")); });
  }

  void mix(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { open().mix(count(info[0], "layer")); });
  }

  // (row, into, first float)
  void copy_stream(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const auto into = view<float>(info[1], "into", "a Float32Array");
      const std::size_t first = count(info[2], "firstFloat");
      const std::size_t hidden = open().config().hidden;
      if (first > into.size() || hidden > into.size() - first) throw std::invalid_argument("a row does not fit into it");
      open().copy_stream(count(info[0], "row"), into.subspan(first, hidden));
    });
  }

  void shared(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { open().shared(count(info[0], "layer")); });
  }

  void expert(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      ExpertPlaces places{{count(info[3], "gateByte")}, {count(info[4], "upByte")}, {count(info[5], "downByte")}};
      if (info.Length() > 6) {
        std::size_t at = 6;
        for (MatrixPlace* place : {&places.gate, &places.up, &places.down}) {
          place->scales = count(info[at++], "scalesByte");
          place->biases = count(info[at++], "biasesByte");
          place->apart = true;
        }
      }
      open().expert(count(info[0], "layer"), count(info[1], "expert"), count(info[2], "segment"), places);
    });
  }

  void combine(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { open().combine(count(info[0], "layer")); });
  }

  void logits(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      open().logits(count(info[0], "firstRow"), count(info[1], "rowCount"), count(info[2], "firstSlot"));
    });
  }

  void close(const Napi::CallbackInfo&) {
    backend_.reset();
    tensors_.clear();
    slab_.clear();
    rows_.Reset();
    route_ids_.Reset();
    route_weights_.Reset();
    logits_.Reset();
  }

  Backend& open() {
    if (backend_ == nullptr) throw std::logic_error("the backend is closed");
    return *backend_;
  }

  static Napi::Reference<Napi::Value> keep(const Napi::Value& value) {
    return Napi::Reference<Napi::Value>::New(value, 1);
  }

  std::unique_ptr<Backend> backend_;
  std::vector<Napi::Reference<Napi::Value>> tensors_;
  std::vector<Napi::Reference<Napi::Value>> slab_;
  Napi::Reference<Napi::Value> rows_;
  Napi::Reference<Napi::Value> route_ids_;
  Napi::Reference<Napi::Value> route_weights_;
  Napi::Reference<Napi::Value> logits_;
};

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
  exports.Set("Backend", BackendObject::define(env));
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
