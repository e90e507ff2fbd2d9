/**
 * Writes one file front to back through a buffer, under another name until it is whole.
 *
 * Why: a benchmark that finds half a model under the right name measures nonsense. Invariant: FILE is there only after
 * `publish`; until then the bytes are in FILE.part, and `discard` removes that. Nothing is synced to the disk: a model
 * made from a seed can be made again. The number behind it: writes of 8 MiB keep the cost of a call (10 us) below 1%.
 */
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { MakeModelError } from './error.ts';

const BUFFER_BYTES = 8 << 20;

/** What to tell about a failure of the file system. */
const REASONS: Readonly<Record<string, string>> = {
  ENOSPC: 'the disk is full',
  EDQUOT: 'the disk quota is used up',
  EFBIG: 'the file would be larger than the file system or the shell (ulimit -f) allows',
  EROFS: 'the file system is read-only',
  EACCES: 'permission denied',
  ENOENT: 'the folder does not exist',
  ENOTDIR: 'the folder is not a folder',
  EISDIR: 'it is a folder',
};

export function diskError(path: string, what: string, cause: unknown): MakeModelError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const reason = REASONS[code ?? ''] ?? message;
  return new MakeModelError('disk', `${path}: ${what}: ${reason}`, cause);
}

export class OutputFile {
  readonly path: string;
  /** Bytes handed to the system so far. */
  writtenBytes = 0;
  readonly #partPath: string;
  #buffer: Buffer | undefined = Buffer.allocUnsafe(BUFFER_BYTES);
  #bufferedBytes = 0;
  #fd: number | undefined;
  #isPublished = false;

  constructor(path: string) {
    this.path = path;
    this.#partPath = `${path}.part`;
    try {
      this.#fd = openSync(this.#partPath, 'w');
    } catch (cause) {
      throw diskError(this.#partPath, 'cannot be created', cause);
    }
  }

  get lengthBytes(): number {
    return this.writtenBytes + this.#bufferedBytes;
  }

  /** Copies the piece. Returns whether bytes went to the system, for callers that breathe then. */
  write(piece: Uint8Array): boolean {
    let flushed = false;
    for (let done = 0; done < piece.length; ) {
      const fittingBytes = Math.min(piece.length - done, BUFFER_BYTES - this.#bufferedBytes);
      this.#buffer!.set(piece.subarray(done, done + fittingBytes), this.#bufferedBytes);
      this.#bufferedBytes += fittingBytes;
      done += fittingBytes;
      if (this.#bufferedBytes === BUFFER_BYTES) {
        this.#flush();
        flushed = true;
      }
    }
    return flushed;
  }

  /** Writes what is left and closes; the file keeps its temporary name. */
  finish(): void {
    this.#flush();
    // A split set may have a thousand files: none that is finished keeps its 8 MiB.
    this.#buffer = undefined;
    try {
      this.#close();
    } catch (cause) {
      throw diskError(this.#partPath, 'cannot be written', cause);
    }
  }

  publish(): void {
    try {
      renameSync(this.#partPath, this.path);
      this.#isPublished = true;
    } catch (cause) {
      throw diskError(this.path, 'cannot be put in place', cause);
    }
  }

  /** Removes the file under whichever name it has: a part of a split set is no use without the others. */
  discard(): void {
    try {
      this.#close();
    } catch {
      // The file is about to go: what closing has to say about its bytes no longer matters.
    }
    rmSync(this.#isPublished ? this.path : this.#partPath, { force: true });
  }

  #close(): void {
    const fd = this.#fd;
    this.#fd = undefined;
    if (fd !== undefined) closeSync(fd);
  }

  #flush(): void {
    for (let done = 0; done < this.#bufferedBytes; ) {
      try {
        done += writeSync(this.#fd!, this.#buffer!, done, this.#bufferedBytes - done);
      } catch (cause) {
        throw diskError(this.#partPath, `cannot be written past byte ${this.writtenBytes + done}`, cause);
      }
    }
    this.writtenBytes += this.#bufferedBytes;
    this.#bufferedBytes = 0;
  }
}
