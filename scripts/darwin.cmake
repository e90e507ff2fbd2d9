# Cross-compiling to macOS on Apple Silicon with zig's clang, which brings the C library's headers and stubs along.
# scripts/build-darwin.mjs passes MOESTREAM_ZIG.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MOESTREAM_ZIG)

set(target aarch64-macos.11.0-none)
set(CMAKE_C_COMPILER ${MOESTREAM_ZIG} cc)
set(CMAKE_CXX_COMPILER ${MOESTREAM_ZIG} c++)
set(CMAKE_C_COMPILER_TARGET ${target})
set(CMAKE_CXX_COMPILER_TARGET ${target})
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

# zig's driver names no SDK.
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_OSX_DEPLOYMENT_TARGET "")
set(CMAKE_USER_MAKE_RULES_OVERRIDE_CXX ${CMAKE_CURRENT_LIST_DIR}/darwin-rules.cmake)
