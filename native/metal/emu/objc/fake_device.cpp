// The device and what it makes: libraries, pipelines, buffers, residency sets; and the few Foundation classes.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "fake_metal.h"
#include "observation.h"

namespace moestream::fake {
namespace {

constexpr Unsigned kLanguageMin = (3ul << 16) + 1;
constexpr Unsigned kLanguageMax = 4ul << 16;
constexpr std::size_t kMaxBufferBytes = std::size_t{8} << 30;

Object* the_device = nullptr;

// Which file a source is: the host's embedding begins each with its name.
std::string file_named_by(const std::string& source) {
  const std::string mark = "// file: ";
  if (source.compare(0, mark.size(), mark) != 0) return "";
  const std::size_t end = source.find('\n');
  const std::string name = source.substr(mark.size(), end - mark.size());
  return name.substr(0, name.rfind(".metal"));
}

std::vector<const emu::KernelInfo*> kernels_of(const std::string& file) {
  std::vector<const emu::KernelInfo*> found = emu::all_kernels();
  std::erase_if(found, [&](const emu::KernelInfo* each) { return each->library != file; });
  return found;
}

// Metal copies as many bytes as the type has.
std::size_t constant_bytes(Unsigned type) {
  switch (type) {
    case 29: case 33: case 3: return 4;
    case 37: case 41: return 2;
    case 53: return 1;
    default: misuse("function constant of type " + std::to_string(type));
  }
}

Object* new_library(Object*, Selector, String* source, CompileOptions* options, Object** error) {
  if (options->language < kLanguageMin || options->language > kLanguageMax) {
    misuse("library for language version " + std::to_string(options->language));
  }
  if (!options->safe_math) misuse("a library with fast math: the router's choice would not be the CPU's");
  const std::string file = file_named_by(source->text);
  if (injection().refuse_source || kernels_of(file).empty()) {
    *error = error_of(3, "program_source: no kernels in " + (file.empty() ? "a source without a name" : file));
    return nullptr;
  }
  Library* const made_library = made<Library>();
  made_library->file = file;
  return made_library;
}

Object* function_names(Library* library, Selector) {
  Array* const names = made<Array>();
  for (const emu::KernelInfo* each : kernels_of(library->file)) {
    String* const name = made<String>();
    name->text = each->name;
    names->items.push_back(name);
  }
  return autorelease(names);
}

Object* new_function(Library* library, Selector, String* name, ConstantValues* values, Object** error) {
  const emu::KernelInfo* const kernel = emu::find_kernel(name->text);
  if (kernel == nullptr || kernel->library != library->file) {
    *error = error_of(4, "no function " + name->text + " in " + library->file);
    return nullptr;
  }
  Function* const function = made<Function>();
  function->kernel = kernel;
  function->constants = values->values;
  return function;
}

Object* new_pipeline(Object*, Selector, Function* function, Object**) {
  Pipeline* const pipeline = made<Pipeline>();
  pipeline->kernel = function->kernel;
  pipeline->constants = function->constants;
  return pipeline;
}

Object* new_buffer(Object*, Selector, Unsigned bytes, Unsigned) {
  if (bytes == 0 || bytes > kMaxBufferBytes) misuse("a buffer of " + std::to_string(bytes) + " bytes");
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  Buffer* const buffer = made<Buffer>();
  buffer->memory = static_cast<std::byte*>(memory);
  buffer->bytes = bytes;
  buffer->owns = true;
  return buffer;
}

Object* new_buffer_over(Object*, Selector, void* memory, Unsigned bytes, Unsigned, Object*) {
  const bool whole_pages = reinterpret_cast<std::uintptr_t>(memory) % kPageBytes == 0 && bytes % kPageBytes == 0;
  if (!whole_pages || bytes == 0 || bytes > kMaxBufferBytes) {
    misuse("a buffer over " + std::to_string(bytes) + " bytes that are not whole pages");
  }
  Buffer* const buffer = made<Buffer>();
  buffer->memory = static_cast<std::byte*>(memory);
  buffer->bytes = bytes;
  return buffer;
}

void define_foundation(const Class& root) {
  Class& string = define<String>("NSString", &root);
  method(string, "UTF8String", [](String* self, Selector) { return self->text.c_str(); });
  method(*string.metaclass, "stringWithCString:encoding:",
         [](Object*, Selector, const char* text, Unsigned) { return string_of(text); });

  Class& error = define<Error>("NSError", &root);
  method(error, "localizedDescription", [](Error* self, Selector) { return string_of(self->text); });
  method(error, "code", [](Error* self, Selector) { return self->code; });

  Class& array = define<Array>("NSArray", &root);
  method(array, "count", [](Array* self, Selector) { return Unsigned{self->items.size()}; });
  method(array, "objectAtIndex:", [](Array* self, Selector, Unsigned at) {
    if (at >= self->items.size()) misuse("object " + std::to_string(at) + " of a shorter array");
    return self->items[at];
  });
}

void define_libraries(const Class& root) {
  Class& options = define<CompileOptions>("MTLCompileOptions", &root);
  method(*options.metaclass, "alloc", [](Object*, Selector) -> Object* { return made<CompileOptions>(); });
  method(options, "setLanguageVersion:",
         [](CompileOptions* self, Selector, Unsigned version) { self->language = version; });
  method(options, "setMathMode:", [](CompileOptions* self, Selector, long mode) { self->safe_math = mode == 0; });

  Class& values = define<ConstantValues>("MTLFunctionConstantValues", &root);
  method(*values.metaclass, "alloc", [](Object*, Selector) -> Object* { return made<ConstantValues>(); });
  method(values, "setConstantValue:type:atIndex:",
         [](ConstantValues* self, Selector, const void* value, Unsigned type, Unsigned index) {
           emu::FunctionConstant constant{static_cast<std::uint32_t>(index), {}};
           std::memcpy(constant.bytes.data(), value, constant_bytes(type));
           self->values.push_back(constant);
         });

  Class& library = define<Library>("MTLFakeLibrary", &root);
  method(library, "functionNames", &function_names);
  method(library, "newFunctionWithName:constantValues:error:", &new_function);
  define<Function>("MTLFakeFunction", &root);
  Class& pipeline = define<Pipeline>("MTLFakePipeline", &root);
  method(pipeline, "maxTotalThreadsPerThreadgroup",
         [](Pipeline* self, Selector) { return Unsigned{self->kernel->max_threads}; });
  method(pipeline, "threadExecutionWidth", [](Pipeline*, Selector) { return Unsigned{emu::kSimdWidth}; });
}

void define_memory(const Class& root) {
  Class& buffer = define<Buffer>("MTLFakeBuffer", &root);
  method(buffer, "contents", [](Buffer* self, Selector) -> void* { return self->memory; });
  method(buffer, "length", [](Buffer* self, Selector) { return Unsigned{self->bytes}; });

  Class& descriptor = define<ResidencyDescriptor>("MTLResidencySetDescriptor", &root);
  method(*descriptor.metaclass, "alloc", [](Object*, Selector) -> Object* { return made<ResidencyDescriptor>(); });
  Class& set = define<ResidencySet>("MTLFakeResidencySet", &root);
  method(set, "addAllocation:",
         [](ResidencySet* self, Selector, Buffer* each) { self->allocations.push_back(retain(each)); });
  method(set, "commit", [](Object*, Selector) {});
  method(set, "requestResidency", [](ResidencySet* self, Selector) {
    for (const Object* each : self->allocations) {
      counters().resident_bytes += static_cast<long>(static_cast<const Buffer*>(each)->bytes);
    }
  });
}

}  // namespace

Array::~Array() {
  for (Object* each : items) release(each);
}

Buffer::~Buffer() {
  if (owns) munmap(memory, bytes);
}

ResidencySet::~ResidencySet() {
  for (Object* each : allocations) release(each);
}

Object* string_of(const std::string& text) {
  String* const string = made<String>();
  string->text = text;
  return autorelease(string);
}

Object* error_of(long code, const std::string& text) {
  Error* const error = made<Error>();
  error->code = code;
  error->text = text;
  return autorelease(error);
}

void define_device(const Class& root) {
  define_foundation(root);
  define_libraries(root);
  define_memory(root);
  Class& device = define<Device>("MTLFakeDevice", &root);
  method(device, "name", [](Object*, Selector) { return string_of("emulated GPU"); });
  method(device, "hasUnifiedMemory", [](Object*, Selector) { return true; });
  method(device, "supportsFamily:", [](Object*, Selector, long family) { return family <= 1010; });
  method(device, "maxBufferLength", [](Object*, Selector) { return Unsigned{kMaxBufferBytes}; });
  method(device, "recommendedMaxWorkingSetSize", [](Object*, Selector) { return std::uint64_t{kMaxBufferBytes}; });
  method(device, "newCommandQueue", [](Object*, Selector) -> Object* { return made<Queue>(); });
  method(device, "newBufferWithLength:options:", &new_buffer);
  method(device, "newBufferWithBytesNoCopy:length:options:deallocator:", &new_buffer_over);
  method(device, "newLibraryWithSource:options:error:", &new_library);
  method(device, "newComputePipelineStateWithFunction:error:", &new_pipeline);
  method(device, "newResidencySetWithDescriptor:error:",
         [](Object*, Selector, Object*, Object**) -> Object* { return made<ResidencySet>(); });
  the_device = made<Device>();
}

void define_metal() {
  static const bool done = [] {
    Class& root = define_class("NSObject", nullptr);
    method(root, "retain", [](Object* self, Selector) { return retain(self); });
    method(root, "release", [](Object* self, Selector) { release(self); });
    method(root, "init", [](Object* self, Selector) { return self; });
    method(root, "respondsToSelector:",
           [](Object* self, Selector, Selector asked) { return self->isa->find(asked) != nullptr; });
    define_device(root);
    define_commands(root);
    define_encoder(root);
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace moestream::fake

extern "C" [[gnu::visibility("default")]] void* MTLCreateSystemDefaultDevice() {
  moestream::fake::define_metal();
  if (moestream::fake::injection().no_device) return nullptr;
  return moestream::fake::retain(moestream::fake::the_device);
}
