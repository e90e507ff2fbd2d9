// A backend as JavaScript sees it: the interface of src/native.ts, the same for every backend.
//
// Keeps a reference to every view it is given, so that no memory is collected under a step. Only add-ons include this.
#pragma once

#include <napi.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "expert_places.h"
#include "napi_arguments.h"
#include "weights.h"

namespace moestream::cpu {

template <class Backend>
class BackendObject : public Napi::ObjectWrap<BackendObject<Backend>> {
  using Wrap = Napi::ObjectWrap<BackendObject<Backend>>;

 public:
  explicit BackendObject(const Napi::CallbackInfo& info) : Wrap(info) {
    call(info, [&] { backend_ = std::make_unique<Backend>(read_config(info[0])); });
  }

  static Napi::Function define(Napi::Env env) {
    std::vector<Napi::ClassPropertyDescriptor<BackendObject>> members = {
        Wrap::template InstanceMethod<&BackendObject::set_tensor>("setTensor"),
        Wrap::template InstanceMethod<&BackendObject::set_expert_types>("setExpertTypes"),
        Wrap::template InstanceMethod<&BackendObject::seal>("seal"),
        Wrap::template InstanceMethod<&BackendObject::bind_rows>("bindRows"),
        Wrap::template InstanceMethod<&BackendObject::bind_routes>("bindRoutes"),
        Wrap::template InstanceMethod<&BackendObject::bind_slab>("bindSlab"),
        Wrap::template InstanceMethod<&BackendObject::bind_logits>("bindLogits"),
        Wrap::template InstanceMethod<&BackendObject::reset_sequence>("resetSequence"),
        Wrap::template InstanceMethod<&BackendObject::copy_sequence>("copySequence"),
        Wrap::template InstanceMethod<&BackendObject::save_sequence>("saveSequence"),
        Wrap::template InstanceMethod<&BackendObject::restore_sequence>("restoreSequence"),
        Wrap::template InstanceMethod<&BackendObject::sequence_bytes>("sequenceBytes"),
        Wrap::template InstanceMethod<&BackendObject::begin>("begin"),
        Wrap::template InstanceMethod<&BackendObject::mix>("mix"),
        Wrap::template InstanceMethod<&BackendObject::copy_stream>("copyStream"),
        Wrap::template InstanceMethod<&BackendObject::shared>("shared"),
        Wrap::template InstanceMethod<&BackendObject::expert>("expert"),
        Wrap::template InstanceMethod<&BackendObject::flush>("flush"),
        Wrap::template InstanceMethod<&BackendObject::finish>("finish"),
        Wrap::template InstanceMethod<&BackendObject::combine>("combine"),
        Wrap::template InstanceMethod<&BackendObject::logits>("logits"),
        Wrap::template InstanceMethod<&BackendObject::abandon>("abandon"),
        Wrap::template InstanceMethod<&BackendObject::close>("close"),
    };
    if constexpr (kCounts) members.push_back(Wrap::template InstanceMethod<&BackendObject::counts>("counts"));
    return Wrap::DefineClass(env, "Backend", members);
  }

 private:
  // Every entry stands in what the backend needs around it, a pool of Metal's for example.
  template <class Work>
  static auto call(const Napi::CallbackInfo& info, const Work& work) {
    return guarded(info.Env(), [&] {
      [[maybe_unused]] const typename Backend::Scope scope{};
      return work();
    });
  }

  static constexpr bool kCounts = requires(Backend& backend) { backend.counts(); };

  void set_tensor(const Napi::CallbackInfo& info) {
    call(info, [&] {
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
    call(info, [&] {
      open().unsealed_weights().set_expert_types(count(info[0], "layer"), type_id(info[1], "gateType"),
                                                 type_id(info[2], "upType"), type_id(info[3], "downType"));
    });
  }

  void seal(const Napi::CallbackInfo& info) {
    call(info, [&] { open().seal(); });
  }

  void bind_rows(const Napi::CallbackInfo& info) {
    call(info, [&] {
      open().bind_rows(view<std::int32_t>(info[0], "rows", "an Int32Array"));
      rows_ = keep(info[0]);
    });
  }

  void bind_routes(const Napi::CallbackInfo& info) {
    call(info, [&] {
      open().bind_routes(view<std::int32_t>(info[0], "ids", "an Int32Array"),
                         view<float>(info[1], "weights", "a Float32Array"));
      route_ids_ = keep(info[0]);
      route_weights_ = keep(info[1]);
    });
  }

  void bind_slab(const Napi::CallbackInfo& info) {
    call(info, [&] {
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
    call(info, [&] {
      open().bind_logits(view<float>(info[0], "logits", "a Float32Array"));
      logits_ = keep(info[0]);
    });
  }

  void reset_sequence(const Napi::CallbackInfo& info) {
    call(info, [&] { open().reset_sequence(count(info[0], "sequence")); });
  }

  void copy_sequence(const Napi::CallbackInfo& info) {
    call(info, [&] { open().copy_sequence(count(info[0], "from"), count(info[1], "to")); });
  }

  Napi::Value save_sequence(const Napi::CallbackInfo& info) {
    return call(info, [&]() -> Napi::Value {
      const std::size_t bytes = open().save_sequence(count(info[0], "sequence"), bytes_view(info[1], "into"));
      return Napi::Number::New(info.Env(), static_cast<double>(bytes));
    });
  }

  void restore_sequence(const Napi::CallbackInfo& info) {
    call(info, [&] { open().restore_sequence(count(info[0], "sequence"), bytes_view(info[1], "from")); });
  }

  Napi::Value sequence_bytes(const Napi::CallbackInfo& info) {
    return call(info, [&]() -> Napi::Value {
      return Napi::Number::New(info.Env(), static_cast<double>(open().sequence_bytes(count(info[0], "positions"))));
    });
  }

  void begin(const Napi::CallbackInfo& info) {
    call(info, [&] { open().begin(count(info[0], "rowCount")); });
  }

  void mix(const Napi::CallbackInfo& info) {
    call(info, [&] { open().mix(count(info[0], "layer")); });
  }

  // (row, into, first float)
  void copy_stream(const Napi::CallbackInfo& info) {
    call(info, [&] {
      const auto into = view<float>(info[1], "into", "a Float32Array");
      const std::size_t first = count(info[2], "firstFloat");
      const std::size_t hidden = open().config().hidden;
      if (first > into.size() || hidden > into.size() - first) throw std::invalid_argument("a row does not fit into it");
      open().copy_stream(count(info[0], "row"), into.subspan(first, hidden));
    });
  }

  void shared(const Napi::CallbackInfo& info) {
    call(info, [&] { open().shared(count(info[0], "layer")); });
  }

  void expert(const Napi::CallbackInfo& info) {
    call(info, [&] {
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

  void flush(const Napi::CallbackInfo& info) {
    call(info, [&] { open().flush(); });
  }

  void finish(const Napi::CallbackInfo& info) {
    call(info, [&] { open().finish(); });
  }

  void abandon(const Napi::CallbackInfo& info) {
    call(info, [&] { open().abandon(); });
  }

  // What went to the GPU so far; only of a backend that has one.
  Napi::Value counts(const Napi::CallbackInfo& info) {
    return call(info, [&]() -> Napi::Value {
      const Napi::Object result = Napi::Object::New(info.Env());
      if constexpr (kCounts) {
        const auto& found = open().counts();
        result.Set("commandBuffers", static_cast<double>(found.command_buffers));
        result.Set("dispatches", static_cast<double>(found.dispatches));
        result.Set("waits", static_cast<double>(found.waits));
      }
      return result;
    });
  }

  void combine(const Napi::CallbackInfo& info) {
    call(info, [&] { open().combine(count(info[0], "layer")); });
  }

  void logits(const Napi::CallbackInfo& info) {
    call(info, [&] {
      open().logits(count(info[0], "firstRow"), count(info[1], "rowCount"), count(info[2], "firstSlot"));
    });
  }

  void close(const Napi::CallbackInfo& info) {
    call(info, [&] { backend_.reset(); });
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

  std::vector<Napi::Reference<Napi::Value>> tensors_;
  std::vector<Napi::Reference<Napi::Value>> slab_;
  Napi::Reference<Napi::Value> rows_;
  Napi::Reference<Napi::Value> route_ids_;
  Napi::Reference<Napi::Value> route_weights_;
  Napi::Reference<Napi::Value> logits_;
  std::unique_ptr<Backend> backend_;  // the last member goes first: it may still be reading
};

}  // namespace moestream::cpu
