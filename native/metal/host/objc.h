// The Objective-C runtime, as far as Metal needs it, without an Apple header or a link-time framework.
//
// Metal's objects are Objective-C objects, and a message to one is a C call of objc_msgSend cast to the method's type.
// Written out, that needs four symbols, which are looked up when the first device is asked for: so this compiles on any
// system, loads where there is no Metal, and can be cross-built. `Method` fixes the types of one message where it is
// declared; a selector is registered once, because a token sends some thousand messages.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>

namespace moestream::metal::objc {

using Id = void*;
using Selector = void*;
using Unsigned = unsigned long;  // NSUInteger on every system that has Metal

struct Runtime {
  void* send;  // objc_msgSend
  Selector (*register_selector)(const char* name);
  Id (*get_class)(const char* name);
  void* (*push_pool)();
  void (*pop_pool)(void* pool);
  Id (*system_default_device)();
};

// Loads the frameworks at the first call. Throws GpuError where there are none.
const Runtime& runtime();

// A message with its result and argument types, for example Method<void(Unsigned)>.
template <class Signature>
class Method;

template <class Result, class... Arguments>
class Method<Result(Arguments...)> {
 public:
  explicit Method(const char* name) : selector_(runtime().register_selector(name)) {}

  Result operator()(Id receiver, Arguments... arguments) const {
    using Function = Result (*)(Id, Selector, Arguments...);
    return reinterpret_cast<Function>(runtime().send)(receiver, selector_, arguments...);
  }

 private:
  Selector selector_;
};

void retain(Id object);
void release(Id object);
// Whether the object's class has the method: how newer parts of Metal are found.
bool responds_to(Id object, const char* selector);
// Autoreleased.
Id string_of(const std::string& text);
std::string text_of(Id string);
// What an NSError says; empty for none.
std::string description_of(Id error);
long code_of(Id error);
// Sends alloc and init; owned by the caller. nullptr when there is no such class.
Id make(const char* class_name);

// Objects that methods return without owning them live until the innermost pool ends. Every entry from JavaScript has one.
class Pool {
 public:
  Pool() : pool_(runtime().push_pool()) {}
  ~Pool() { runtime().pop_pool(pool_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  void* pool_;
};

// One reference to an object.
class Owned {
 public:
  Owned() = default;
  // Takes over a reference that the caller owns.
  explicit Owned(Id object) : object_(object) {}
  static Owned retained(Id object) {
    retain(object);
    return Owned(object);
  }
  ~Owned() { reset(); }
  Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    if (this != &other) {
      reset();
      object_ = std::exchange(other.object_, nullptr);
    }
    return *this;
  }

  Id get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }
  void reset() {
    if (object_ != nullptr) release(std::exchange(object_, nullptr));
  }

 private:
  Id object_ = nullptr;
};

}  // namespace moestream::metal::objc
