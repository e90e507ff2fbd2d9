# The Metal room: the host code, and either Apple's runtime under it (found when it runs, nothing is linked) or the fake
# one and the kernel emulator, for tests on Linux: -DMOESTREAM_METAL_EMULATOR=ON, which scripts/build-emulator.mjs sets.
# It shares with the CPU room what a model is, and the arithmetic that its self-test compares with, and compiles those few
# files again rather than linking all of it.
find_program(NODE_EXECUTABLE node REQUIRED)
file(GLOB kernel_files CONFIGURE_DEPENDS native/metal/kernels/*.metal native/metal/kernels/*.h)
set(embedded ${CMAKE_BINARY_DIR}/metal_kernel_sources.cpp)
add_custom_command(
  OUTPUT ${embedded}
  COMMAND ${NODE_EXECUTABLE} ${CMAKE_SOURCE_DIR}/native/metal/host/embed.mjs ${embedded}
  DEPENDS native/metal/host/embed.mjs ${kernel_files}
  VERBATIM)

add_room(metal
  native/cpu/batch.cpp
  native/cpu/codebooks.cpp
  native/cpu/dequantize.cpp
  native/cpu/dequantize_affine.cpp
  native/cpu/dequantize_iq.cpp
  native/cpu/dequantize_k.cpp
  native/cpu/expert_places.cpp
  native/cpu/memory.cpp
  native/cpu/model_config.cpp
  native/cpu/saved_sequence.cpp
  native/cpu/sequence_state.cpp
  native/cpu/tensor_type.cpp
  native/cpu/vector_kernels.cpp
  native/cpu/vector_kernels_baseline.cpp
  native/cpu/weights.cpp
  native/metal/checks/affine.cpp
  native/metal/checks/attention.cpp
  native/metal/checks/by_type.cpp
  native/metal/checks/delta_net.cpp
  native/metal/checks/elementary.cpp
  native/metal/checks/material.cpp
  native/metal/checks/products.cpp
  native/metal/checks/router.cpp
  native/metal/host/backend.cpp
  native/metal/host/commands.cpp
  native/metal/host/device_checks.cpp
  native/metal/host/gpu_memory.cpp
  native/metal/host/gpu_weights.cpp
  native/metal/host/kernels.cpp
  native/metal/host/layers.cpp
  native/metal/host/layers_attention.cpp
  native/metal/host/layers_delta_net.cpp
  native/metal/host/mapped_memory.cpp
  native/metal/host/metal.cpp
  native/metal/host/objc.cpp
  native/metal/host/products.cpp
  ${embedded})
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  target_sources(metal_room PRIVATE native/cpu/vector_kernels_avx2.cpp native/cpu/vector_kernels_avx512.cpp)
  set_source_files_properties(native/cpu/vector_kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mf16c")
  set_source_files_properties(native/cpu/vector_kernels_avx512.cpp PROPERTIES COMPILE_OPTIONS "-mavx512f;-mf16c")
endif()
target_include_directories(metal_room PRIVATE native/metal/host)
target_link_libraries(metal_room PUBLIC ${CMAKE_DL_LIBS})

if(NOT MOESTREAM_METAL_EMULATOR)
  add_addon(metal native/metal/host/addon.cpp native/metal/host/addon_extras.cpp)
  return()
endif()

include(native/metal/emu/emu.cmake)
add_room(fake_metal
  native/metal/emu/objc/fake_commands.cpp
  native/metal/emu/objc/fake_device.cpp
  native/metal/emu/objc/fake_encoder.cpp
  native/metal/emu/objc/objc_runtime.cpp
  native/metal/emu/objc/observation.cpp)

# The add-on is still called metal: it is loaded in its place.
add_addon(metal native/metal/host/addon.cpp native/metal/emu/objc/addon_extras.cpp)
target_link_libraries(metal PRIVATE fake_metal_room metal_emulator emulated_kernels ${CMAKE_DL_LIBS})

# Host code that is wrong on purpose; test/metal/misuse.test.ts runs it.
add_executable(metal_misuse EXCLUDE_FROM_ALL native/metal/emu/objc/misuse.cpp)
target_link_libraries(metal_misuse PRIVATE metal_room fake_metal_room metal_emulator emulated_kernels ${CMAKE_DL_LIBS})
target_link_options(metal_misuse PRIVATE -rdynamic)
set_target_properties(metal_misuse PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_LIBRARY_OUTPUT_DIRECTORY})

# The backend without Node, for the sanitizers: scripts/test-sanitizers.sh. Not part of the package.
if(EXISTS ${CMAKE_SOURCE_DIR}/test/native/metal-steps.cpp)
  add_executable(metal_steps EXCLUDE_FROM_ALL test/native/metal-steps.cpp)
  target_link_libraries(metal_steps PRIVATE metal_room fake_metal_room metal_emulator emulated_kernels ${CMAKE_DL_LIBS})
  target_link_options(metal_steps PRIVATE -rdynamic)
  set_target_properties(metal_steps PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endif()
