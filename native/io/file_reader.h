// Positional reads of model files.
//
// Invariant: `read_at` returns fewer bytes than asked only at the end of the file. Interrupted and short reads are
// continued here, so no caller ever meets one; a caller that gets less than it needs knows the file is too short.
//
// Direct reads (O_DIRECT on Linux, F_NOCACHE on macOS) are what this project lives on: into huge pages they cost
// 0.02 CPU-seconds per GB here, where the page cache costs 0.5.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace moestream::io {

struct OpenedFile {
  int fd;
  std::uint64_t size_bytes;
};

// Opens for reading; `direct` bypasses the page cache or fails. Throws std::system_error with the errno.
OpenedFile open_file(const std::string& path, bool direct);
void close_file(int fd);

// The boundary that direct reads of this file need, 0 when the system does not say (tmpfs, FUSE, macOS).
std::uint32_t direct_alignment_bytes(int fd);

// Of `samples` pages, one at random from each of as many equal parts of the file, how many a buffered read would find
// in memory; -1 where the system does not tell. Fewer pages than samples are looked at once each. To look brings a page
// in: at the same places as the last time everything would seem to be there.
std::int64_t cached_pages(int fd, std::uint64_t size_bytes, std::uint64_t samples, std::uint64_t seed);

// Reads into the whole span. Returns the bytes read, or -errno.
std::int64_t read_at(int fd, std::uint64_t file_offset, std::span<std::byte> into);

}  // namespace moestream::io
