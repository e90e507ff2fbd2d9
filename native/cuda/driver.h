// The few functions of NVIDIA's driver that a kernel needs, found when the program runs: no SDK, no headers, and the
// program starts (and says why it does nothing) where there is no driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace moestream::cuda {

using Address = unsigned long long;

struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Driver {
 public:
  // Throws CudaError when there is no driver or no card.
  Driver();

  std::string device_name() const { return device_name_; }

  // A fresh context: after a kernel's fault nothing else runs in the old one.
  void open_context();
  void close_context();

  void* load_module(const std::string& ptx);
  // Null when the module has no such function.
  void* find_function(void* module, const std::string& name) const;

  Address allocate(std::size_t bytes);
  void free(Address address);
  void upload(Address to, const void* from, std::size_t bytes);
  void download(void* to, Address from, std::size_t bytes);
  void copy(Address to, Address from, std::size_t bytes);

  void launch(void* function, const std::uint32_t (&groups)[3], std::uint32_t threads, void* argument);
  void synchronise();

  // Milliseconds of what `work` puts into the stream.
  template <class Work>
  float time(const Work& work) {
    begin_timing();
    work();
    return end_timing();
  }

 private:
  using Result = int;

  template <class Function>
  void find(Function& function, const char* name);
  void check(Result result, const char* call) const;
  void begin_timing();
  float end_timing();

  void* library_ = nullptr;
  void* context_ = nullptr;
  void* begin_event_ = nullptr;
  void* end_event_ = nullptr;
  int device_ = 0;
  std::string device_name_;

  Result (*init_)(unsigned) = nullptr;
  Result (*device_get_)(int*, int) = nullptr;
  Result (*device_name_of_)(char*, int, int) = nullptr;
  Result (*error_string_)(Result, const char**) = nullptr;
  Result (*context_create_)(void**, unsigned, int) = nullptr;
  Result (*context_destroy_)(void*) = nullptr;
  Result (*context_synchronise_)() = nullptr;
  Result (*module_load_)(void**, const void*) = nullptr;
  Result (*function_get_)(void**, void*, const char*) = nullptr;
  Result (*allocate_)(Address*, std::size_t) = nullptr;
  Result (*free_)(Address) = nullptr;
  Result (*upload_)(Address, const void*, std::size_t) = nullptr;
  Result (*download_)(void*, Address, std::size_t) = nullptr;
  Result (*copy_)(Address, Address, std::size_t) = nullptr;
  Result (*launch_)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                    void**) = nullptr;
  Result (*event_create_)(void**, unsigned) = nullptr;
  Result (*event_record_)(void*, void*) = nullptr;
  Result (*event_synchronise_)(void*) = nullptr;
  Result (*event_elapsed_)(float*, void*, void*) = nullptr;
};

}  // namespace moestream::cuda
