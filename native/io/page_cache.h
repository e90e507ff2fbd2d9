// What the system's page cache holds of a file, and forgetting it: a measurement must know whether memory or the disk
// has answered.
#pragma once

#include <cstdint>

namespace moestream::io {

// Bytes of the file in the page cache, whole pages; -1 where the system does not say.
std::int64_t cached_bytes(int fd, std::uint64_t size_bytes);

// Asks the system to forget the file's pages, after writing back what is new. False where there is no way to ask. Pages
// that another process has mapped stay.
bool drop_cached(int fd);

}  // namespace moestream::io
