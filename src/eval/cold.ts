/**
 * A cold start, and saying how cold it is.
 *
 * Two caches stand between a token and the disk. The expert slab is empty in an engine that has just been opened. The
 * system's page cache is passed by with direct reads; for buffered ones the system is asked to forget the model's pages,
 * and then looked at again, because it may refuse in silence (another process has them mapped; macOS has no way to
 * ask). A drive's own cache, or the host's below a virtual disk, nobody here can empty: that is for the reader to know.
 */
import type { Engine } from '../engine/engine.ts';
import { loadIo } from '../native.ts';
import { formatBytes } from '../pipeline/memory.ts';

export interface CacheState {
  readonly mode: 'warm' | 'cold' | 'as-is';
  /** What was done, and what is left. */
  readonly sentence: string;
}

export interface FileCache {
  readonly sizeBytes: number;
  /** Undefined where the system does not say. */
  readonly cachedBytes: number | undefined;
}

function withFile<T>(path: string, work: (fd: number, sizeBytes: number) => T): T {
  const io = loadIo();
  const { fd, sizeBytes } = io.open(path, false);
  try {
    return work(fd, sizeBytes);
  } finally {
    io.close(fd);
  }
}

/** What the page cache holds of these files. */
export function fileCache(paths: readonly string[]): FileCache {
  const io = loadIo();
  let totalBytes = 0;
  let cachedBytes: number | undefined = 0;
  for (const path of paths) {
    const { sizeBytes, cached } = withFile(path, (fd, length) => ({
      sizeBytes: length,
      cached: io.cachedBytes(fd, length),
    }));
    totalBytes += sizeBytes;
    cachedBytes = cached < 0 || cachedBytes === undefined ? undefined : cachedBytes + cached;
  }
  return { sizeBytes: totalBytes, cachedBytes };
}

/** Asks the system to forget the files. False where there is no way to ask. */
export function dropFromPageCache(paths: readonly string[]): boolean {
  const io = loadIo();
  return paths.map((path) => withFile(path, (fd) => io.dropCached(fd))).every((done) => done);
}

/** Makes the next run of an engine that has just been opened a cold one. */
export function coldCaches(engine: Engine): CacheState {
  const mode = 'cold';
  if (engine.directIo) {
    return { mode, sentence: 'the expert cache is empty, the page cache is passed by (direct reads)' };
  }
  const paths = engine.model.files.map((file) => file.path);
  const empty = 'the expert cache is empty';
  if (!dropFromPageCache(paths)) {
    return {
      mode,
      sentence: `${empty}; this system has no way to drop the page cache, so reads may come from it`,
    };
  }
  const { cachedBytes } = fileCache(paths);
  const left =
    cachedBytes === undefined
      ? 'what is left is unknown'
      : `${formatBytes(cachedBytes)} of the model are left in it`;
  return { mode, sentence: `${empty}, the page cache was dropped (${left})` };
}
