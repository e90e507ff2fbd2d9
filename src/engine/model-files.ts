/**
 * The open files of a model, and whether they are read past the page cache.
 *
 * `auto` tries: some file systems refuse O_DIRECT when the file is opened (tmpfs on old kernels), some at the first read
 * (EINVAL), and some ask for a larger alignment than a page. A trial read of the first page settles it before any expert
 * depends on it, and what was chosen is said once. Where direct reads work, `auto` still prefers the page cache if the
 * files are in it and will stay (page-cache.ts).
 */
import { MoestreamError } from '../errors.ts';
import type { IoAddon } from '../native.ts';
import { allocateShared, PAGE_BYTES } from '../pipeline/memory.ts';
import type { IoMode } from './options.ts';
import { reasonForCache } from './page-cache.ts';

export interface ModelFiles {
  readonly fds: readonly number[];
  readonly paths: readonly string[];
  readonly sizeBytes: readonly number[];
  readonly direct: boolean;
  /** Buffered because all of them are in the page cache. */
  readonly cached: boolean;
}

function errnoOf(error: unknown): number {
  return error instanceof Error && 'errno' in error && typeof error.errno === 'number' ? error.errno : 0;
}

/** Opens one file and reads its first page. Throws with the system's reason. */
function tryOpen(io: IoAddon, path: string, direct: boolean): { fd: number; sizeBytes: number } {
  const file = io.open(path, direct);
  const alignmentBytes = direct ? io.directAlignment(file.fd) : 0;
  const trial =
    alignmentBytes > PAGE_BYTES ? 0 : io.readAt(file.fd, 0, PAGE_BYTES, allocateShared(PAGE_BYTES), 0);
  if (alignmentBytes <= PAGE_BYTES && trial >= Math.min(PAGE_BYTES, file.sizeBytes)) return file;
  io.close(file.fd);
  if (alignmentBytes > PAGE_BYTES)
    throw new Error(`direct reads of it need ${alignmentBytes}-byte alignment`);
  throw new Error(`its first page does not read: ${trial < 0 ? io.errnoName(-trial) : `${trial} bytes`}`);
}

function openAll(io: IoAddon, paths: readonly string[], direct: boolean): ModelFiles {
  const opened: { fd: number; sizeBytes: number }[] = [];
  try {
    for (const path of paths) opened.push(tryOpen(io, path, direct));
  } catch (cause) {
    for (const file of opened) io.close(file.fd);
    throw cause;
  }
  return {
    fds: opened.map((file) => file.fd),
    paths,
    sizeBytes: opened.map((file) => file.sizeBytes),
    direct,
    cached: false,
  };
}

/**
 * Opens all files of a model in one mode. Notices say what `auto` has chosen when it is not the first choice. `cacheRoom`
 * says how much of the page cache is not in the way of anything else, for `auto`.
 */
export function openModelFiles(
  io: IoAddon,
  paths: readonly string[],
  mode: IoMode,
  notice: (sentence: string) => void,
  cacheRoom: () => number,
): ModelFiles {
  const describe = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause));
  let direct: ModelFiles | undefined;
  if (mode !== 'buffered') {
    try {
      direct = openAll(io, paths, true);
    } catch (cause) {
      if (mode === 'direct') {
        throw new MoestreamError('READ_FAILED', `${paths[0]} cannot be read directly: ${describe(cause)}`, {
          hint: 'Use --io buffered, or move the file to a file system with direct I/O.',
          cause,
        });
      }
      notice(`reading through the page cache: direct I/O is refused (${describe(cause)})`);
    }
  }
  let cached = false;
  if (direct !== undefined) {
    const reason = mode === 'auto' ? reasonForCache(io, direct, cacheRoom()) : undefined;
    if (reason === undefined) return direct;
    closeModelFiles(io, direct);
    notice(`reading through the page cache: ${reason}`);
    cached = true;
  }
  try {
    return { ...openAll(io, paths, false), cached };
  } catch (cause) {
    const code = errnoOf(cause) === 2 ? 'MODEL_NOT_FOUND' : 'READ_FAILED';
    throw new MoestreamError(code, `${paths[0]} cannot be read: ${describe(cause)}`, { cause });
  }
}

export function closeModelFiles(io: IoAddon, files: ModelFiles): void {
  for (const fd of files.fds) io.close(fd);
}
