// Arguments from JavaScript as the backends' types, and C++ exceptions as JavaScript errors: TypeError for arguments of a
// wrong kind, Error for everything else, with a `code` where the other side tells failures apart. For add-ons only.
#pragma once

#include <napi.h>

#include <cmath>
#include <cstdint>
#include <new>
#include <span>
#include <string>

#include "model_config.h"
#include "moestream/coded_error.h"

namespace moestream::cpu {

inline constexpr double kMaxInteger = 9007199254740991.0;  // 2^53 - 1

inline Napi::TypeError type_error(Napi::Env env, const std::string& what, const char* kind) {
  return Napi::TypeError::New(env, what + " must be " + kind);
}

// An integer from `lowest` to 2^53 - 1.
inline std::int64_t integer(const Napi::Value& value, const std::string& what, double lowest = 0) {
  const bool is_number = value.IsNumber();
  const double number = is_number ? value.As<Napi::Number>().DoubleValue() : 0;
  if (!is_number || number != std::trunc(number) || number < lowest || number > kMaxInteger) {
    throw type_error(value.Env(), what, lowest < 0 ? "an integer" : "a non-negative integer");
  }
  return static_cast<std::int64_t>(number);
}

inline std::size_t count(const Napi::Value& value, const std::string& what) {
  return static_cast<std::size_t>(integer(value, what));
}

inline std::uint32_t type_id(const Napi::Value& value, const std::string& what) {
  const std::int64_t id = integer(value, what);
  if (id > 0xffffffff) throw type_error(value.Env(), what, "a ggml type id");
  return static_cast<std::uint32_t>(id);
}

template <class Element>
inline constexpr napi_typedarray_type kArrayType = napi_uint8_array;
template <>
inline constexpr napi_typedarray_type kArrayType<std::int32_t> = napi_int32_array;
template <>
inline constexpr napi_typedarray_type kArrayType<float> = napi_float32_array;

// The memory of a typed array. Views over shared memory are fine; shared memory itself is not (Node 20 refuses it).
template <class Element>
std::span<Element> view(const Napi::Value& value, const std::string& what, const char* kind) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != kArrayType<Element>) {
    throw type_error(value.Env(), what, kind);
  }
  auto array = value.As<Napi::TypedArrayOf<Element>>();
  return {array.Data(), array.ElementLength()};
}

inline std::span<std::uint8_t> bytes_view(const Napi::Value& value, const std::string& what) {
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

inline Precision read_precision(const ConfigReader& reader) {
  const Napi::Value precision = reader.member("precision");
  const std::string name = precision.IsString() ? precision.As<Napi::String>().Utf8Value() : "";
  if (name == "exact") return Precision::kExact;
  if (name == "fast") return Precision::kFast;
  throw type_error(precision.Env(), "precision", "'exact' or 'fast'");
}

inline KvType kv_type_named(const Napi::Value& value) {
  const std::string name = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  if (name == "f32") return KvType::kF32;
  if (name == "f16") return KvType::kF16;
  if (name == "q8_0") return KvType::kQ8_0;
  throw type_error(value.Env(), "kvType", "'f32', 'f16' or 'q8_0'");
}

inline ModelConfig read_config(const Napi::Value& value) {
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
  } catch (const CodedError& coded) {
    const Napi::Error error = Napi::Error::New(env, coded.what());
    error.Set("code", Napi::String::New(env, coded.code()));
    throw error;
  } catch (const std::bad_alloc&) {
    throw Napi::Error::New(env, "the system has no memory for the backend's buffers");
  } catch (const std::exception& error) {
    throw Napi::Error::New(env, error.what());
  }
}

}  // namespace moestream::cpu
