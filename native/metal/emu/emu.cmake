# The kernel emulator: every .metal file as C++ and the SIMT runtime under it. Tests only; needs clang 19, because the
# shim uses half floats and source columns as clang has them.
#
# A kernel file that depends on another toolchain (tensor.metal: Metal 4) is emulated like the others.
file(GLOB metal_sources CONFIGURE_DEPENDS native/metal/kernels/*.metal)
file(GLOB metal_headers CONFIGURE_DEPENDS native/metal/kernels/*.h)
file(GLOB metal_generator CONFIGURE_DEPENDS native/metal/emu/generator/*.mjs)
file(GLOB metal_shim CONFIGURE_DEPENDS native/metal/emu/shim/*.h native/metal/emu/runtime/*.h)

set(emulated_sources)
foreach(source ${metal_sources})
  get_filename_component(name ${source} NAME_WE)
  set(emulated ${CMAKE_BINARY_DIR}/emulated/${name}.cpp)
  add_custom_command(
    OUTPUT ${emulated}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/emulated
    COMMAND ${NODE_EXECUTABLE} ${CMAKE_SOURCE_DIR}/native/metal/emu/generator/generate.mjs emulated ${source} ${emulated}
    DEPENDS ${source} ${metal_headers} ${metal_generator}
    VERBATIM)
  list(APPEND emulated_sources ${emulated})
endforeach()
set_source_files_properties(${emulated_sources} PROPERTIES OBJECT_DEPENDS "${metal_shim}")

# Metal's language: single precision constants, no products fused that the source does not fuse.
add_library(emulated_kernels OBJECT ${emulated_sources})
set_target_properties(emulated_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(emulated_kernels PRIVATE native/metal/emu/shim)
target_compile_options(emulated_kernels PRIVATE
  -O1 -g -ffp-contract=off -fno-exceptions -fno-rtti -Xclang -cl-single-precision-constant
  -Wall -Wno-unused -Wno-deprecated-enum-enum-conversion)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  target_compile_options(emulated_kernels PRIVATE -march=x86-64-v3)
endif()

add_library(metal_emulator OBJECT
  native/metal/emu/runtime/dispatch.cpp
  native/metal/emu/runtime/fiber_switch.cpp
  native/metal/emu/runtime/registry.cpp
  native/metal/emu/runtime/worker.cpp
  $<TARGET_OBJECTS:emulated_kernels>)
set_target_properties(metal_emulator PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_link_libraries(metal_emulator PUBLIC Threads::Threads)
target_compile_options(metal_emulator PRIVATE -O2 -Wall -Wextra)
if(SANITIZE)
  target_compile_options(emulated_kernels PRIVATE -fsanitize=${SANITIZE})
  target_link_options(metal_emulator PUBLIC -fsanitize=${SANITIZE})
  # ThreadSanitizer hears of the runtime's fibers by calls; it must not see the runtime's own accesses.
  if(SANITIZE STREQUAL "thread")
    target_compile_definitions(metal_emulator PRIVATE MOESTREAM_EMU_TSAN)
  else()
    target_compile_options(metal_emulator PRIVATE -fsanitize=${SANITIZE})
  endif()
endif()
