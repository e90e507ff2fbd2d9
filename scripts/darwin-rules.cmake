# Read behind CMake's own rules for the system, which make bundles: zig has none, and a dynamic library loads as well.
set(CMAKE_SHARED_MODULE_CREATE_CXX_FLAGS "-shared")
