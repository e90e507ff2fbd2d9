// A small Objective-C runtime for tests: classes, selectors, messages, references, autorelease pools.
//
// It exports the C functions that native/metal/host looks up, so the host code runs on it unchanged. It is stricter than
// Apple's: an over-release, an unknown selector or an autorelease without a pool ends in `Misuse`, and objects are
// counted per class, so that a test can ask what leaked.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace moestream::fake {

// A call that Metal's validation would stop, or that would leak or crash.
class Misuse : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// Throws Misuse. Says so on stderr too, because a destructor of the host may be on the way; not in an add-on, where every
// sentence becomes an error of JavaScript's.
[[noreturn]] void misuse(const std::string& sentence);
void print_misuse(bool wanted);

using Selector = const char*;  // one address per name
Selector intern(const std::string& name);

struct Object;

struct Class {
  Class* metaclass = nullptr;  // receives the messages sent to the class itself
  const Class* parent = nullptr;
  std::string name;
  std::unordered_map<Selector, void*> methods;
  void (*destroy)(Object*) = nullptr;
  const Class* buried = nullptr;  // the class of its destroyed objects
  std::atomic<long> live{0};

  void* find(Selector selector) const;
};

struct Object {
  const Class* isa = nullptr;
  std::atomic<long> references{1};
};

// Classes live as long as the process.
Class& define_class(const std::string& name, const Class* parent);
const Class* find_class(const std::string& name);
// Classes with live objects.
std::map<std::string, long> live_objects();

Object* retain(Object* object);
void release(Object* object);
Object* autorelease(Object* object);

// Keeps the memory of a destroyed object for a while, as an object of a class without methods: a message to it is found
// out instead of corrupting something. `memory` came from operator new.
void bury(void* memory, const Class& was);

// A C++ type as a class: `made<T>()` allocates one, and its last release destroys it.
template <class T>
inline Class* class_of = nullptr;

template <class T>
Class& define(const std::string& name, const Class* parent) {
  Class& made = define_class(name, parent);
  made.destroy = [](Object* object) {
    T* const typed = static_cast<T*>(object);
    const Class& was = *typed->isa;
    typed->~T();
    bury(typed, was);
  };
  class_of<T> = &made;
  return made;
}

template <class T>
T* made() {
  T* const object = new T;
  object->isa = class_of<T>;
  ++class_of<T>->live;
  return object;
}

// A method: a function of (receiver, selector, arguments...), or a lambda without captures.
template <class Function>
void method(Class& of, const char* name, Function function) {
  of.methods[intern(name)] = reinterpret_cast<void*>(+function);
}

}  // namespace moestream::fake
