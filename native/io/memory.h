// Preparing the slab's memory.
//
// Reads into memory that was never touched run at a tenth of the speed (0.2-0.7 GB/s instead of 4.7 on the machine
// where this was measured), and reads into 4 KiB pages at half; so the slab asks for huge pages and touches every page
// before the first read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moestream::io {

// Asks for huge pages where the system has them, then makes every page present. The content stays as it is.
// Throws std::system_error when the system has no memory left.
void prefault(std::span<std::byte> memory);

// Keeps the memory from being swapped out. Throws std::system_error: the limit on locked memory is 8 MB by default.
void lock_in_memory(std::span<const std::byte> memory);

// Gives the pages back to the system; what was in them is lost, and the addresses stay valid. False where the system does
// not do it. For memory whose owner is freed later than it is needed, as JavaScript's is.
bool release(std::span<std::byte> memory);

// Bytes of this memory that lie in huge pages now, or -1 where the system does not tell.
std::int64_t huge_page_bytes(std::span<const std::byte> memory);

// The size of the huge pages that this system gives to ordinary memory, or 0 where it has none.
std::size_t huge_page_size();

// For every piece, its whole huge pages if the system has backed all of them by such pages, and nothing otherwise.
// Slow: reads the whole memory map, once.
std::vector<std::span<std::byte>> huge_parts(std::span<const std::span<std::byte>> pieces);

}  // namespace moestream::io
