# The CPU room: one model's forward pass over quantised weights.
add_room(cpu
  native/cpu/attention.cpp
  native/cpu/backend.cpp
  native/cpu/batch.cpp
  native/cpu/codebooks.cpp
  native/cpu/delta_net.cpp
  native/cpu/dequantize.cpp
  native/cpu/dequantize_affine.cpp
  native/cpu/dequantize_iq.cpp
  native/cpu/dequantize_k.cpp
  native/cpu/expert_places.cpp
  native/cpu/fast/fast_multiplier.cpp
  native/cpu/fast/portable.cpp
  native/cpu/fast/products.cpp
  native/cpu/footprint.cpp
  native/cpu/matmul.cpp
  native/cpu/memory.cpp
  native/cpu/model_config.cpp
  native/cpu/moe.cpp
  native/cpu/quantize.cpp
  native/cpu/router.cpp
  native/cpu/router_probe.cpp
  native/cpu/saved_sequence.cpp
  native/cpu/scratch.cpp
  native/cpu/sequence_state.cpp
  native/cpu/tensor_type.cpp
  native/cpu/thread_pool.cpp
  native/cpu/vector_kernels.cpp
  native/cpu/vector_kernels_baseline.cpp
  native/cpu/weights.cpp)

# The wider instruction sets are files of their own, entered only on processors that have them.
function(add_with_flags source flags)
  target_sources(cpu_room PRIVATE ${source})
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}")
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  # GCC 12 takes the undefined operands of its own intrinsics for uninitialised variables.
  set(avx512_flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vnni -mgfni -mf16c -mbmi2
      -Wno-maybe-uninitialized)
  add_with_flags(native/cpu/vector_kernels_avx2.cpp "-mavx2;-mf16c")
  add_with_flags(native/cpu/vector_kernels_avx512.cpp "-mavx512f;-mf16c;-Wno-maybe-uninitialized")
  add_with_flags(native/cpu/fast/avx2.cpp "-mavx2;-mf16c")
  add_with_flags(native/cpu/fast/avx512.cpp "${avx512_flags}")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  # zig has its own words for processors.
  if(DEFINED MOESTREAM_ZIG)
    add_with_flags(native/cpu/fast/neon.cpp "-mcpu=generic+dotprod")
    add_with_flags(native/cpu/fast/neon_i8mm.cpp "-mcpu=generic+dotprod+i8mm")
  else()
    add_with_flags(native/cpu/fast/neon.cpp "-march=armv8.2-a+dotprod")
    add_with_flags(native/cpu/fast/neon_i8mm.cpp "-march=armv8.2-a+dotprod+i8mm")
  endif()
endif()

add_addon(cpu native/cpu/addon.cpp)

# Not part of the package: GB/s of weights per kernel.
if(EXISTS ${CMAKE_CURRENT_LIST_DIR}/../../bench/kernels/kernel_bench.cpp)
  add_executable(kernel_bench EXCLUDE_FROM_ALL bench/kernels/kernel_bench.cpp)
  target_link_libraries(kernel_bench PRIVATE cpu_room)
endif()
