/*
 * Makes reads of a byte range of any file go wrong: preloaded into a process, it stands before pread.
 *
 *   FAULT_MODE   eio | short | eintr | eof | slow | stale     FAULT_FROM, FAULT_TO   the byte range
 *
 * stale says that the bytes have come and leaves what was there: a cache that serves what nobody has read. short, eintr and slow let every second call through, as a system does that is slow or interrupted, not broken.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

static atomic_uint calls;

static uint64_t number(const char *name) {
  const char *text = getenv(name);
  return text ? strtoull(text, 0, 10) : 0;
}

typedef ssize_t (*pread_function)(int, void *, size_t, off_t);

static ssize_t faulty(const char *symbol, int fd, void *into, size_t length, off_t offset) {
  pread_function real = (pread_function)dlsym(RTLD_NEXT, symbol);
  const char *mode = getenv("FAULT_MODE");
  const uint64_t from = number("FAULT_FROM"), to = number("FAULT_TO"), begin = (uint64_t)offset;
  if (!mode || begin + length <= from || begin >= to) return real(fd, into, length, offset);
  if (!strcmp(mode, "eio")) return errno = EIO, -1;
  if (!strcmp(mode, "eof")) return 0;
  if (!strcmp(mode, "stale")) return (ssize_t)length;
  if (atomic_fetch_add(&calls, 1) % 2 == 1) return real(fd, into, length, offset);
  // Never 0 bytes, which would mean the end of the file.
  const size_t half = length / 2 / 512 * 512;
  if (!strcmp(mode, "short") && half > 0) return real(fd, into, half, offset);
  if (!strcmp(mode, "eintr")) return errno = EINTR, -1;
  if (!strcmp(mode, "slow")) nanosleep(&(struct timespec){0, 30000000}, 0);
  return real(fd, into, length, offset);
}

ssize_t pread(int fd, void *into, size_t length, off_t offset) { return faulty("pread", fd, into, length, offset); }
ssize_t pread64(int fd, void *into, size_t length, off_t offset) { return faulty("pread64", fd, into, length, offset); }
