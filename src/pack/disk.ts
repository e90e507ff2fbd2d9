/**
 * Reading and writing for packing and verifying: large pieces, past the page cache where the file system allows it.
 *
 * Why past the cache: a pack of 180 GB must not push everything else out of memory, and bytes that are verified must come
 * from the disk, not from the memory they were just written from. Reads run on Node's thread pool, so that one piece is
 * read while another is summed up. Every failure is typed and names file and byte.
 */
import { constants, mkdirSync, read as readCallback, statSync } from 'node:fs';
import { type FileHandle, open, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { MoestreamError } from '../errors.ts';
import { type IoAddon, loadIo } from '../native.ts';
import { allocateShared, PAGE_BYTES, roundDown, roundUp } from '../pipeline/memory.ts';

const readFd = promisify(readCallback);

/** After a short direct read the next one may start on this boundary; see native/io/file_reader.cpp. */
const RESUME_BYTES = 512;
/** A signal storm must not turn a read into an endless loop. */
const INTERRUPTIONS_MAX = 1000;
/** Large enough for full bandwidth, small enough to keep several in flight. */
export const PIECE_BYTES = 4 * 1024 ** 2;
/** Pieces or experts in flight: Node's pool has four threads. */
export const IN_FLIGHT = 4;

export function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException | null)?.code ?? 'unknown error';
}

/** Room to read `byteLength` bytes into, wherever in a page they begin. */
export function readBuffer(byteLength: number): Uint8Array<SharedArrayBuffer> {
  return allocateShared(roundUp(byteLength, PAGE_BYTES) + PAGE_BYTES);
}

/** A file that is read in pieces. */
export class PieceReader {
  readonly path: string;
  /** Whether reads go past the page cache. */
  readonly direct: boolean;
  private readonly io: IoAddon;
  private readonly fd: number;

  constructor(path: string) {
    this.io = loadIo();
    this.path = path;
    const direct = openDirect(this.io, path);
    this.direct = direct !== undefined;
    this.fd = direct ?? openBuffered(this.io, path);
  }

  /** Reads into a buffer from `readBuffer` and returns the view of exactly the bytes asked for. */
  async read(offsetBytes: number, byteLength: number, into: Uint8Array): Promise<Uint8Array> {
    const begin = roundDown(offsetBytes, PAGE_BYTES);
    const wanted = offsetBytes + byteLength - begin;
    const length = roundUp(wanted, PAGE_BYTES);
    let interruptions = 0;
    for (let reached = 0; reached < wanted; ) {
      const from = roundDown(reached, RESUME_BYTES);
      let count: number;
      try {
        ({ bytesRead: count } = await readFd(this.fd, into, from, length - from, begin + from));
      } catch (cause) {
        if (/^(EINTR|EAGAIN)$/.test(codeOf(cause)) && ++interruptions < INTERRUPTIONS_MAX) continue;
        throw new MoestreamError(
          'READ_FAILED',
          `${codeOf(cause)} reading ${this.path} at byte ${offsetBytes}`,
          { hint: 'The disk or file system failed the read; check the system log and the disk.', cause },
        );
      }
      if (from + count <= reached) {
        throw new MoestreamError(
          'READ_SHORT',
          `${this.path} ends at byte ${begin + reached}, wanted ${byteLength} bytes at ${offsetBytes}`,
          { hint: 'Something changed the file while it was in use; restore it and start again.' },
        );
      }
      reached = from + count;
    }
    return into.subarray(offsetBytes - begin, wanted);
  }

  close(): void {
    this.io.close(this.fd);
  }
}

/** Opens and reads a page: some file systems refuse direct reads only then. */
function openDirect(io: IoAddon, path: string): number | undefined {
  let fd: number;
  try {
    ({ fd } = io.open(path, true));
  } catch {
    return undefined;
  }
  const fits = io.directAlignment(fd) <= PAGE_BYTES;
  if (fits && io.readAt(fd, 0, PAGE_BYTES, allocateShared(PAGE_BYTES), 0) >= 0) return fd;
  io.close(fd);
  return undefined;
}

/** Opens through the page cache. Throws READ_FAILED. */
export function openBuffered(io: IoAddon, path: string): number {
  try {
    return io.open(path, false).fd;
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MoestreamError('READ_FAILED', `${path} cannot be read: ${reason}`, { cause });
  }
}

/** A piece of a file. */
export interface Piece {
  readonly reader: PieceReader;
  readonly offsetBytes: number;
  readonly byteLength: number;
}

export type ReadPiece<P extends Piece> =
  | { readonly piece: P; readonly bytes: Uint8Array; readonly error?: undefined }
  | { readonly piece: P; readonly bytes?: undefined; readonly error: unknown };

/** Reads pieces of at most PIECE_BYTES in order, some ahead. The bytes are valid until the next piece is asked for. */
export async function* readAhead<P extends Piece>(pieces: Iterable<P>): AsyncGenerator<ReadPiece<P>> {
  const source = pieces[Symbol.iterator]();
  const free: Uint8Array[] = Array.from({ length: IN_FLIGHT }, () => readBuffer(PIECE_BYTES));
  const running: { buffer: Uint8Array; result: Promise<ReadPiece<P>> }[] = [];
  const start = (): void => {
    while (free.length > 0) {
      const next = source.next();
      if (next.done === true) return;
      const piece = next.value;
      const buffer = free.pop()!;
      const result = piece.reader.read(piece.offsetBytes, piece.byteLength, buffer).then(
        (bytes) => ({ piece, bytes }),
        (error: unknown) => ({ piece, error }),
      );
      running.push({ buffer, result });
    }
  };
  try {
    for (start(); running.length > 0; start()) {
      const { buffer, result } = running[0]!;
      yield await result;
      running.shift();
      free.push(buffer);
    }
  } finally {
    // Nobody may close a file that is still being read.
    await Promise.all(running.map(({ result }) => result));
  }
}

/** Cuts a span of a file into pieces. */
export function* piecesOf(reader: PieceReader, offsetBytes: number, byteLength: number): Generator<Piece> {
  for (let at = 0; at < byteLength; at += PIECE_BYTES) {
    yield { reader, offsetBytes: offsetBytes + at, byteLength: Math.min(PIECE_BYTES, byteLength - at) };
  }
}

/**
 * Does `work` for 0 .. count-1, some at a time; `lane` numbers those that run together. The first failure ends it, and it
 * is thrown when nothing runs any more.
 */
export async function inLanes(
  count: number,
  work: (index: number, lane: number) => Promise<void>,
): Promise<void> {
  let next = 0;
  let failure: { error: unknown } | undefined;
  const run = async (lane: number): Promise<void> => {
    while (next < count && failure === undefined) {
      try {
        await work(next++, lane);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, (_, lane) => run(lane)));
  if (failure !== undefined) throw failure.error;
}

/** The typed error of a failed write. */
export function writeError(path: string, cause: unknown): MoestreamError {
  const code = codeOf(cause);
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new MoestreamError('DISK_FULL', `${path}: the disk is full (${code})`, {
      hint: 'Make room and run the same command again: it goes on where it was.',
      cause,
    });
  }
  return new MoestreamError('WRITE_FAILED', `${path} cannot be written (${code})`, { cause });
}

/** Makes a folder and those above it. Not mkdir's own `recursive`: below /proc that never returns. */
export function makeFolder(folder: string): void {
  try {
    mkdirSync(folder);
  } catch (cause) {
    const parent = dirname(folder);
    if (codeOf(cause) === 'ENOENT' && parent !== folder) {
      if (statSync(parent, { throwIfNoEntry: false }) !== undefined) throw writeError(folder, cause);
      makeFolder(parent);
      makeFolder(folder);
    } else if (statSync(folder, { throwIfNoEntry: false })?.isDirectory() !== true) {
      throw writeError(folder, cause);
    }
  }
}

/**
 * A new file, or an old one emptied. `direct` writes past the page cache where the file system does that: then every write
 * must be whole pages in page-aligned memory. It is twice as fast as waiting for the cache to be written back.
 */
export class FileWriter {
  readonly path: string;
  private readonly file: FileHandle;
  private readonly isDirect: boolean;
  /** For a file system that takes O_DIRECT when a file is opened and refuses it when it is written. */
  private buffered: Promise<FileHandle> | undefined;

  static async create(path: string, direct: boolean): Promise<FileWriter> {
    const { O_WRONLY, O_CREAT, O_TRUNC, O_DIRECT } = constants;
    try {
      // macOS has no such flag.
      if (direct && O_DIRECT !== undefined) {
        try {
          return new FileWriter(path, await open(path, O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0o666), true);
        } catch (cause) {
          if (codeOf(cause) !== 'EINVAL') throw cause;
        }
      }
      return new FileWriter(path, await open(path, 'w'), false);
    } catch (cause) {
      throw writeError(path, cause);
    }
  }

  private constructor(path: string, file: FileHandle, isDirect: boolean) {
    this.path = path;
    this.file = file;
    this.isDirect = isDirect;
  }

  async write(bytes: Uint8Array, offsetBytes: number): Promise<void> {
    let file = this.file;
    try {
      for (let at = 0; at < bytes.length; ) {
        try {
          at += (await file.write(bytes, at, bytes.length - at, offsetBytes + at)).bytesWritten;
        } catch (cause) {
          if (!this.isDirect || file !== this.file || codeOf(cause) !== 'EINVAL') throw cause;
          this.buffered ??= open(this.path, 'r+');
          file = await this.buffered;
        }
      }
    } catch (cause) {
      throw writeError(this.path, cause);
    }
  }

  /** Returns when the bytes are on the disk. */
  async sync(): Promise<void> {
    try {
      await this.file.sync();
    } catch (cause) {
      throw writeError(this.path, cause);
    }
  }

  async close(): Promise<void> {
    await this.file.close();
    await (await this.buffered?.catch(() => undefined))?.close();
  }
}

/** Makes names of a folder durable. File systems that cannot sync a folder do so by themselves or never. */
export async function syncFolder(folder: string): Promise<void> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(folder, 'r');
    await handle.sync();
  } catch (cause) {
    if (!/^(EINVAL|ENOTSUP|EISDIR|EPERM)$/.test(codeOf(cause))) throw writeError(folder, cause);
  } finally {
    await handle?.close();
  }
}

/** Writes a small file so that its name never stands for half of it. */
export async function writeWhole(path: string, bytes: string | Uint8Array): Promise<void> {
  const partial = `${path}.part`;
  try {
    const handle = await open(partial, 'w');
    try {
      await handle.writeFile(bytes);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(partial, path);
  } catch (cause) {
    throw writeError(path, cause);
  }
  await syncFolder(dirname(path));
}
