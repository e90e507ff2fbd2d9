// References, pools, and the message trampoline of objc_runtime.h.
#include "objc_runtime.h"

#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "fake_metal.h"

namespace moestream::fake {
namespace {

// What a queue's thread may touch is never destroyed: it may still let go of its last command buffer, or compute, while the
// process ends.
std::mutex names_mutex;
std::deque<Class>& classes = *new std::deque<Class>;
thread_local std::vector<std::vector<Object*>> pools;
std::atomic<bool> printing{true};

void nothing_there(Object*, Selector) {}

[[noreturn]] void unrecognised(Object* self, Selector selector) {
  misuse("-[" + self->isa->name + " " + selector + "]: unrecognised selector");
}

}  // namespace

void misuse(const std::string& sentence) {
  if (printing) std::fprintf(stderr, "fake Metal: %s\n", sentence.c_str());
  throw Misuse("fake Metal: " + sentence);
}

void print_misuse(bool wanted) { printing = wanted; }

Selector intern(const std::string& name) {
  static std::map<std::string, std::unique_ptr<std::string>>& names =
      *new std::map<std::string, std::unique_ptr<std::string>>;
  const std::lock_guard lock(names_mutex);
  std::unique_ptr<std::string>& kept = names[name];
  if (kept == nullptr) kept = std::make_unique<std::string>(name);
  return kept->c_str();
}

void* Class::find(Selector selector) const {
  for (const Class* at = this; at != nullptr; at = at->parent) {
    const auto found = at->methods.find(selector);
    if (found != at->methods.end()) return found->second;
  }
  return nullptr;
}

Class& define_class(const std::string& name, const Class* parent) {
  Class& meta = classes.emplace_back();
  meta.name = "+" + name;
  meta.parent = parent == nullptr ? nullptr : parent->metaclass;
  Class& made = classes.emplace_back();
  made.name = name;
  made.parent = parent;
  made.metaclass = &meta;
  Class& buried = classes.emplace_back();
  buried.name = "released " + name;
  made.buried = &buried;
  return made;
}

const Class* find_class(const std::string& name) {
  for (const Class& each : classes) {
    if (each.name == name) return &each;
  }
  return nullptr;
}

std::map<std::string, long> live_objects() {
  std::map<std::string, long> found;
  for (const Class& each : classes) {
    if (each.live > 0) found[each.name] = each.live;
  }
  return found;
}

void bury(void* memory, const Class& was) {
  constexpr std::size_t kGraves = 4096;
  static std::mutex mutex;
  static std::deque<void*>& graves = *new std::deque<void*>;
  Object* const grave = new (memory) Object;
  grave->isa = was.buried;
  const std::lock_guard lock(mutex);
  graves.push_back(memory);
  if (graves.size() <= kGraves) return;
  ::operator delete(graves.front());
  graves.pop_front();
}

Object* retain(Object* object) {
  if (object != nullptr) ++object->references;
  return object;
}

void release(Object* object) {
  if (object == nullptr) return;
  Class& of = const_cast<Class&>(*object->isa);
  if (of.destroy == nullptr) misuse("over-release of a " + of.name);
  const long left = --object->references;
  if (left > 0) return;
  --of.live;
  of.destroy(object);
}

Object* autorelease(Object* object) {
  if (pools.empty()) misuse("a " + object->isa->name + " autoreleased without a pool leaks");
  pools.back().push_back(object);
  return object;
}

// What objc_msgSend jumps to. A message to nil does nothing and gives zero.
extern "C" [[gnu::used]] void* moestream_fake_lookup(Object* self, Selector selector) {
  if (self == nullptr) return reinterpret_cast<void*>(&nothing_there);
  void* const found = self->isa->find(selector);
  return found != nullptr ? found : reinterpret_cast<void*>(&unrecognised);
}

}  // namespace moestream::fake

using namespace moestream::fake;

extern "C" {

[[gnu::visibility("default")]] void* sel_registerName(const char* name) { return const_cast<char*>(intern(name)); }

// A class is the receiver of its own messages, so it is handed out as an object whose class is the metaclass.
[[gnu::visibility("default")]] void* objc_getClass(const char* name) {
  define_metal();
  static std::mutex mutex;
  static std::map<const Class*, std::unique_ptr<Object>>& receivers = *new std::map<const Class*, std::unique_ptr<Object>>;
  const Class* const found = find_class(name);
  if (found == nullptr) return nullptr;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Object>& receiver = receivers[found];
  if (receiver == nullptr) {
    receiver = std::make_unique<Object>();
    receiver->isa = found->metaclass;
  }
  return receiver.get();
}

[[gnu::visibility("default")]] void* objc_autoreleasePoolPush() {
  pools.emplace_back();
  return reinterpret_cast<void*>(pools.size());
}

[[gnu::visibility("default")]] void objc_autoreleasePoolPop(void* pool) {
  if (pools.size() != reinterpret_cast<std::size_t>(pool)) misuse("autorelease pools popped out of order");
  const std::vector<Object*> objects = std::move(pools.back());
  pools.pop_back();
  for (auto at = objects.rbegin(); at != objects.rend(); ++at) release(*at);
}

}  // extern "C"

// objc_msgSend(self, selector, ...): finds the method and jumps to it with every argument register as it was.
#if defined(__x86_64__)
asm(R"(
.text
.globl objc_msgSend
.type objc_msgSend,@function
objc_msgSend:
  pushq %rbp
  movq %rsp, %rbp
  subq $192, %rsp
  movq %rdi, 0(%rsp)
  movq %rsi, 8(%rsp)
  movq %rdx, 16(%rsp)
  movq %rcx, 24(%rsp)
  movq %r8, 32(%rsp)
  movq %r9, 40(%rsp)
  movups %xmm0, 64(%rsp)
  movups %xmm1, 80(%rsp)
  movups %xmm2, 96(%rsp)
  movups %xmm3, 112(%rsp)
  call moestream_fake_lookup@PLT
  movq %rax, %r11
  movups 64(%rsp), %xmm0
  movups 80(%rsp), %xmm1
  movups 96(%rsp), %xmm2
  movups 112(%rsp), %xmm3
  movq 0(%rsp), %rdi
  movq 8(%rsp), %rsi
  movq 16(%rsp), %rdx
  movq 24(%rsp), %rcx
  movq 32(%rsp), %r8
  movq 40(%rsp), %r9
  leave
  jmp *%r11
.size objc_msgSend, .-objc_msgSend
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl objc_msgSend
.type objc_msgSend,%function
objc_msgSend:
  stp x29, x30, [sp, #-16]!
  mov x29, sp
  sub sp, sp, #144
  stp x0, x1, [sp]
  stp x2, x3, [sp, #16]
  stp x4, x5, [sp, #32]
  stp x6, x7, [sp, #48]
  str x8, [sp, #64]
  stp q0, q1, [sp, #80]
  stp q2, q3, [sp, #112]
  bl moestream_fake_lookup
  mov x16, x0
  ldp q0, q1, [sp, #80]
  ldp q2, q3, [sp, #112]
  ldr x8, [sp, #64]
  ldp x6, x7, [sp, #48]
  ldp x4, x5, [sp, #32]
  ldp x2, x3, [sp, #16]
  ldp x0, x1, [sp]
  add sp, sp, #144
  ldp x29, x30, [sp], #16
  br x16
.size objc_msgSend, .-objc_msgSend
)");
#endif
