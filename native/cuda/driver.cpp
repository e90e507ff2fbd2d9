#include "driver.h"

#include <dlfcn.h>

namespace moestream::cuda {

template <class Function>
void Driver::find(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library_, name));
  if (function == nullptr) throw CudaError(std::string("the driver has no ") + name);
}

Driver::Driver() {
  library_ = dlopen("libcuda.so.1", RTLD_NOW);
  if (library_ == nullptr) throw CudaError("no NVIDIA driver: libcuda.so.1 is not there");
  find(init_, "cuInit");
  find(device_get_, "cuDeviceGet");
  find(device_name_of_, "cuDeviceGetName");
  find(error_string_, "cuGetErrorString");
  find(context_create_, "cuCtxCreate_v2");
  find(context_destroy_, "cuCtxDestroy_v2");
  find(context_synchronise_, "cuCtxSynchronize");
  find(module_load_, "cuModuleLoadData");
  find(function_get_, "cuModuleGetFunction");
  find(allocate_, "cuMemAlloc_v2");
  find(free_, "cuMemFree_v2");
  find(upload_, "cuMemcpyHtoD_v2");
  find(download_, "cuMemcpyDtoH_v2");
  find(copy_, "cuMemcpyDtoD_v2");
  find(launch_, "cuLaunchKernel");
  find(event_create_, "cuEventCreate");
  find(event_record_, "cuEventRecord");
  find(event_synchronise_, "cuEventSynchronize");
  find(event_elapsed_, "cuEventElapsedTime");
  check(init_(0), "cuInit");
  check(device_get_(&device_, 0), "cuDeviceGet");
  char name[256] = {};
  check(device_name_of_(name, sizeof name, device_), "cuDeviceGetName");
  device_name_ = name;
  open_context();
}

void Driver::check(Result result, const char* call) const {
  if (result == 0) return;
  const char* text = nullptr;
  error_string_(result, &text);
  throw CudaError(std::string(call) + ": " + (text == nullptr ? "error " + std::to_string(result) : text));
}

void Driver::open_context() {
  check(context_create_(&context_, 0, device_), "cuCtxCreate");
  check(event_create_(&begin_event_, 0), "cuEventCreate");
  check(event_create_(&end_event_, 0), "cuEventCreate");
}

void Driver::close_context() {
  context_destroy_(context_);  // its result is that of the fault it is closed for
  context_ = nullptr;
}

void* Driver::load_module(const std::string& ptx) {
  void* module = nullptr;
  check(module_load_(&module, ptx.c_str()), "cuModuleLoadData");
  return module;
}

void* Driver::find_function(void* module, const std::string& name) const {
  void* function = nullptr;
  return function_get_(&function, module, name.c_str()) == 0 ? function : nullptr;
}

Address Driver::allocate(std::size_t bytes) {
  Address address = 0;
  check(allocate_(&address, bytes), "cuMemAlloc");
  return address;
}

void Driver::free(Address address) { check(free_(address), "cuMemFree"); }

void Driver::upload(Address to, const void* from, std::size_t bytes) {
  check(upload_(to, from, bytes), "cuMemcpyHtoD");
}

void Driver::download(void* to, Address from, std::size_t bytes) {
  check(download_(to, from, bytes), "cuMemcpyDtoH");
}

void Driver::copy(Address to, Address from, std::size_t bytes) { check(copy_(to, from, bytes), "cuMemcpyDtoD"); }

void Driver::launch(void* function, const std::uint32_t (&groups)[3], std::uint32_t threads, void* argument) {
  void* arguments[] = {argument};
  check(launch_(function, groups[0], groups[1], groups[2], threads, 1, 1, 0, nullptr, arguments, nullptr),
        "cuLaunchKernel");
}

void Driver::synchronise() { check(context_synchronise_(), "cuCtxSynchronize"); }

void Driver::begin_timing() { check(event_record_(begin_event_, nullptr), "cuEventRecord"); }

float Driver::end_timing() {
  check(event_record_(end_event_, nullptr), "cuEventRecord");
  check(event_synchronise_(end_event_), "cuEventSynchronize");
  float milliseconds = 0;
  check(event_elapsed_(&milliseconds, begin_event_, end_event_), "cuEventElapsedTime");
  return milliseconds;
}

}  // namespace moestream::cuda
