// The readers on a real file: positional reads from many threads and io_uring, direct and buffered, give the file's
// bytes; ends of files, wrong names, wakes and rings that end with reads under way behave as their headers say.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "../../native/io/file_reader.h"
#include "../../native/io/memory.h"
#include "../../native/io/uring.h"
#include "check.h"
#include "random_blocks.h"

namespace {

using moestream::io::OpenedFile;
using moestream::io::Uring;
using moestream::io::UringCompletion;
using moestream::test::check;
using moestream::test::next_word;
using moestream::test::throws;

constexpr std::size_t kPage = 4096;
constexpr std::size_t kSegment = std::size_t{1} << 20;
constexpr std::size_t kFileBytes = 3 * (std::size_t{1} << 20) + 1234;

// Page-aligned memory, as the slab is.
class Pages {
 public:
  explicit Pages(std::size_t bytes) : bytes_(bytes) {
    memory_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) std::abort();
  }
  ~Pages() { ::munmap(memory_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::span<std::byte> span() const { return {static_cast<std::byte*>(memory_), bytes_}; }

 private:
  void* memory_;
  std::size_t bytes_;
};

struct File {
  std::string path;
  std::vector<std::uint8_t> content;

  explicit File(const std::string& folder) : path(folder + "/content"), content(kFileBytes) {
    std::uint64_t state = 7;
    for (std::uint8_t& each : content) each = static_cast<std::uint8_t>(next_word(state) >> 40);
    std::FILE* out = std::fopen(path.c_str(), "wb");
    if (out == nullptr || std::fwrite(content.data(), 1, kFileBytes, out) != kFileBytes) std::abort();
    std::fclose(out);
  }

  bool holds(std::span<const std::byte> bytes, std::size_t offset) const {
    return offset + bytes.size() <= content.size() && std::memcmp(bytes.data(), content.data() + offset, bytes.size()) == 0;
  }
};

void positional_reads(const File& file, bool direct) {
  const OpenedFile opened = moestream::io::open_file(file.path, direct);
  check(opened.size_bytes == kFileBytes, "the size is the file's");
  constexpr std::size_t kThreads = 4;
  std::vector<std::uint8_t> good(kThreads, 1);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Pages memory(kSegment);
      std::uint64_t state = t + 1;
      for (int round = 0; round < 50; ++round) {
        const std::size_t offset = next_word(state) % (kFileBytes + kPage) / kPage * kPage;
        const std::size_t length = (1 + next_word(state) % (kSegment / kPage)) * kPage;
        const std::size_t expected = offset >= kFileBytes ? 0 : std::min(length, kFileBytes - offset);
        const auto into = memory.span().first(length);
        const std::int64_t count = moestream::io::read_at(opened.fd, offset, into);
        const bool right = count == static_cast<std::int64_t>(expected) && file.holds(into.first(expected), expected == 0 ? 0 : offset);
        if (!right) good[t] = 0;
      }
    });
  }
  for (std::thread& each : threads) each.join();
  check(std::ranges::all_of(good, [](std::uint8_t each) { return each == 1; }), "threads read the file's bytes");
  moestream::io::close_file(opened.fd);
  check(moestream::io::read_at(opened.fd, 0, Pages(kPage).span()) == -EBADF, "a closed file is an error");
}

void wrong_names(const std::string& folder) {
  check(throws<std::system_error>([&] { moestream::io::open_file(folder + "/none", false); }), "a missing file");
  check(throws<std::system_error>([&] { moestream::io::open_file(folder, false); }), "a folder");
}

struct Planned {
  std::size_t offset;
  std::size_t length;
  std::size_t segment;
  std::size_t at;
};

// As many reads as the ring takes, again and again; every completion is compared with the file.
void ring_reads(const File& file, bool direct, unsigned depth) {
  const OpenedFile opened = moestream::io::open_file(file.path, direct);
  const Pages first(depth * 64 * kPage);
  // Begins in the middle of a huge page: of its reads some go to registered memory, some to other, some to both.
  const std::size_t unit = std::max(kPage, moestream::io::huge_page_size());
  const Pages second(depth * 64 * kPage + 2 * unit);
  const std::size_t past = reinterpret_cast<std::uintptr_t>(second.span().data()) % unit;
  const std::span<std::byte> segments[] = {first.span(),
                                           second.span().subspan(unit - past + unit / 2 - kPage, depth * 64 * kPage)};
  for (const auto& each : segments) moestream::io::prefault(each);
  {
    Uring ring(depth, std::span(&opened.fd, 1), segments, -1);
    std::vector<UringCompletion> completions(depth);
    std::uint64_t state = depth;
    for (int round = 0; round < 12; ++round) {
      std::vector<Planned> planned;
      for (unsigned id = 0; id < depth; ++id) {
        const std::size_t offset = next_word(state) % (kFileBytes / kPage) * kPage;
        const std::size_t length = (1 + next_word(state) % 64) * kPage;
        planned.push_back({offset, length, next_word(state) % 2, id * 64 * kPage});
        ring.queue_read(id, 0, offset, planned.back().segment, planned.back().at, static_cast<std::uint32_t>(length));
      }
      for (std::size_t ended = 0; ended < depth;) {
        const std::size_t count = ring.wait(5000, completions);
        check(count > 0, "reads end");
        if (count == 0) return;
        for (const UringCompletion& each : std::span(completions).first(count)) {
          const Planned& plan = planned[each.id];
          const std::size_t expected = std::min(plan.length, kFileBytes - plan.offset);
          check(each.result == static_cast<std::int32_t>(expected), "a read has the length that the file has left");
          check(file.holds(segments[plan.segment].subspan(plan.at, expected), plan.offset), "io_uring reads the bytes");
        }
        ended += count;
      }
    }
    check(ring.wait(1, completions) == 0, "nothing is left, and the time ends a wait");
  }
  moestream::io::close_file(opened.fd);
}

void wakes(const File& file) {
  const OpenedFile opened = moestream::io::open_file(file.path, false);
  const int wake_fd = moestream::io::create_wake_fd();
  {
    const Pages memory(kSegment);
    const std::span<std::byte> segment = memory.span();
    Uring ring(4, std::span(&opened.fd, 1), std::span(&segment, 1), wake_fd);
    std::vector<UringCompletion> completions(4);
    for (int round = 0; round < 20; ++round) {
      std::thread waker([wake_fd] { moestream::io::signal_wake_fd(wake_fd); });
      // A lost wake would leave this waiting for the whole hour.
      check(ring.wait(3'600'000, completions) == 0, "a wake is no completion");
      waker.join();
    }
  }
  ::close(wake_fd);
  moestream::io::close_file(opened.fd);
}

void rings_end_with_reads_under_way(const File& file) {
  for (int round = 0; round < 30; ++round) {
    const OpenedFile opened = moestream::io::open_file(file.path, false);
    const Pages memory(kSegment);
    const std::span<std::byte> segment = memory.span();
    Uring ring(8, std::span(&opened.fd, 1), std::span(&segment, 1), -1);
    for (std::uint32_t id = 0; id < 8; ++id) ring.queue_read(id, 0, id * 128 * 1024, 0, id * 128 * 1024, 128 * 1024);
    std::vector<UringCompletion> completions(1);
    if (round % 2 == 0) ring.wait(0, completions);
    moestream::io::close_file(opened.fd);
  }
}

void slab_memory() {
  const Pages memory(8 * kSegment);
  std::memset(memory.span().data() + 5, 42, 100);
  moestream::io::prefault(memory.span());
  check(memory.span()[5] == std::byte{42}, "prefaulting keeps what is there");
  const std::int64_t huge = moestream::io::huge_page_bytes(memory.span());
  check(huge >= -1 && huge <= static_cast<std::int64_t>(8 * kSegment), "no more huge pages than memory");
}

void huge_memory() {
  const std::size_t unit = moestream::io::huge_page_size();
  if (unit == 0) {
    std::printf("reading: this system has no huge pages, so their registration is not tested\n");
    return;
  }
  const Pages memory(6 * unit);
  const std::span<std::byte> whole = memory.span();
  const std::span<std::byte> pieces[] = {whole.subspan(kPage, 6 * unit - 2 * kPage), whole.subspan(kPage, kPage)};
  check(moestream::io::huge_parts(pieces)[0].empty(), "untouched memory is not in huge pages");
  moestream::io::prefault(pieces[0]);
  if (moestream::io::huge_page_bytes(pieces[0]) <= 0) {
    std::printf("reading: the system gave no huge pages, so their registration is not tested\n");
    return;
  }
  const auto parts = moestream::io::huge_parts(pieces);
  check(parts[0].size() >= 4 * unit && parts[0].size() % unit == 0, "the whole huge pages of a piece");
  check(reinterpret_cast<std::uintptr_t>(parts[0].data()) % unit == 0, "huge parts begin with a huge page");
  check(parts[0].data() >= pieces[0].data() && parts[0].data() + parts[0].size() <= pieces[0].data() + pieces[0].size(),
        "huge parts are inside their piece");
  check(parts[1].empty(), "less than a huge page is none");
  ::madvise(parts[0].data() + unit, kPage, MADV_DONTNEED);
  check(moestream::io::huge_parts(pieces)[0].empty(), "one small page spoils its piece");
}

}  // namespace

int main() {
  char folder[] = "reading-test-XXXXXX";
  if (::mkdtemp(folder) == nullptr) return 2;
  {
    const File file(folder);
    wrong_names(folder);
    slab_memory();
    huge_memory();
    const bool direct_works = !throws<std::system_error>([&] {
      moestream::io::close_file(moestream::io::open_file(file.path, true).fd);
    });
    if (!direct_works) std::printf("reading: direct reads are skipped, this file system has none\n");
    const int refusal = moestream::io::uring_refusal();
    if (refusal != 0) std::printf("reading: io_uring is skipped: %s\n", std::strerror(refusal));
    for (const bool direct : {false, true}) {
      if (direct && !direct_works) continue;
      positional_reads(file, direct);
      for (const unsigned depth : {1u, 3u, 32u}) {
        if (refusal == 0) ring_reads(file, direct, depth);
      }
    }
    if (refusal == 0) {
      wakes(file);
      rings_end_with_reads_under_way(file);
    }
  }
  std::filesystem::remove_all(folder);
  return moestream::test::result("reading");
}
