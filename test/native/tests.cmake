# Tests of the rooms without Node, for sanitizers and emulators: `--target native_tests` builds them all.
set(native_tests backend-steps kernel-equality reading thread-pool)
foreach(name IN LISTS native_tests)
  add_executable(${name} EXCLUDE_FROM_ALL test/native/${name}.cpp)
  target_link_libraries(${name} PRIVATE cpu_room io_room)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endforeach()
add_custom_target(native_tests DEPENDS ${native_tests})
