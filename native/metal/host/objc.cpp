// Looking up the runtime, and the few Foundation messages behind objc.h.
#include "objc.h"

#include <dlfcn.h>

#include "gpu_error.h"

namespace moestream::metal::objc {
namespace {

constexpr Unsigned kUtf8 = 4;  // NSUTF8StringEncoding

struct Libraries {
  void* runtime = nullptr;
  void* metal = nullptr;
};

// On Linux the runtime is the fake one that is linked into this very module.
Libraries open_libraries() {
#if defined(__APPLE__)
  void* const runtime = dlopen("/usr/lib/libobjc.A.dylib", RTLD_LAZY | RTLD_GLOBAL);
  void* const foundation =
      dlopen("/System/Library/Frameworks/Foundation.framework/Foundation", RTLD_LAZY | RTLD_GLOBAL);
  // Without this one a program without windows is given no default device.
  void* const graphics =
      dlopen("/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics", RTLD_LAZY | RTLD_GLOBAL);
  void* const metal = dlopen("/System/Library/Frameworks/Metal.framework/Metal", RTLD_LAZY | RTLD_GLOBAL);
  return foundation == nullptr || graphics == nullptr ? Libraries{} : Libraries{runtime, metal};
#else
  Dl_info here;
  if (dladdr(reinterpret_cast<void*>(&open_libraries), &here) == 0) return {};
  void* module = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (module == nullptr) module = dlopen(nullptr, RTLD_LAZY);  // linked into a program
  return {module, module};
#endif
}

template <class Function>
Function symbol(void* library, const char* name) {
  void* const found = library == nullptr ? nullptr : dlsym(library, name);
  if (found == nullptr) throw GpuError(kGpuUnavailable, std::string("this system has no Metal (") + name + ")");
  return reinterpret_cast<Function>(found);
}

Runtime load() {
  const Libraries libraries = open_libraries();
  return {
      .send = symbol<void*>(libraries.runtime, "objc_msgSend"),
      .register_selector = symbol<Selector (*)(const char*)>(libraries.runtime, "sel_registerName"),
      .get_class = symbol<Id (*)(const char*)>(libraries.runtime, "objc_getClass"),
      .push_pool = symbol<void* (*)()>(libraries.runtime, "objc_autoreleasePoolPush"),
      .pop_pool = symbol<void (*)(void*)>(libraries.runtime, "objc_autoreleasePoolPop"),
      .system_default_device = symbol<Id (*)()>(libraries.metal, "MTLCreateSystemDefaultDevice"),
  };
}

}  // namespace

const Runtime& runtime() {
  static const Runtime loaded = load();
  return loaded;
}

void retain(Id object) {
  static const Method<Id()> message("retain");
  message(object);
}

void release(Id object) {
  static const Method<void()> message("release");
  message(object);
}

bool responds_to(Id object, const char* selector) {
  static const Method<bool(Selector)> message("respondsToSelector:");
  return message(object, runtime().register_selector(selector));
}

Id string_of(const std::string& text) {
  static const Method<Id(const char*, Unsigned)> message("stringWithCString:encoding:");
  return message(runtime().get_class("NSString"), text.c_str(), kUtf8);
}

std::string text_of(Id string) {
  static const Method<const char*()> message("UTF8String");
  const char* const text = string == nullptr ? nullptr : message(string);
  return text == nullptr ? "" : text;
}

std::string description_of(Id error) {
  static const Method<Id()> message("localizedDescription");
  return error == nullptr ? "" : text_of(message(error));
}

long code_of(Id error) {
  static const Method<long()> message("code");
  return error == nullptr ? 0 : message(error);
}

Id make(const char* class_name) {
  static const Method<Id()> alloc("alloc");
  static const Method<Id()> init("init");
  const Id type = runtime().get_class(class_name);
  return type == nullptr ? nullptr : init(alloc(type));
}

}  // namespace moestream::metal::objc
