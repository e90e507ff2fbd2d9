# The CPU room: one model's forward pass over quantised weights.
add_room(cpu
  native/cpu/attention.cpp
  native/cpu/backend.cpp
  native/cpu/codebooks.cpp
  native/cpu/delta_net.cpp
  native/cpu/dequantize.cpp
  native/cpu/dequantize_iq.cpp
  native/cpu/dequantize_k.cpp
  native/cpu/footprint.cpp
  native/cpu/matmul.cpp
  native/cpu/memory.cpp
  native/cpu/model_config.cpp
  native/cpu/moe.cpp
  native/cpu/router.cpp
  native/cpu/scratch.cpp
  native/cpu/sequence_state.cpp
  native/cpu/tensor_type.cpp
  native/cpu/thread_pool.cpp
  native/cpu/vector_kernels.cpp
  native/cpu/vector_kernels_baseline.cpp
  native/cpu/weights.cpp)

# The wider instruction sets are files of their own, entered only on processors that have them.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  target_sources(cpu_room PRIVATE native/cpu/vector_kernels_avx2.cpp native/cpu/vector_kernels_avx512.cpp)
  set_source_files_properties(native/cpu/vector_kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2")
  set_source_files_properties(native/cpu/vector_kernels_avx512.cpp PROPERTIES COMPILE_OPTIONS "-mavx512f")
endif()

add_addon(cpu native/cpu/addon.cpp)
