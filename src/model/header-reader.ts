/**
 * Reads the header of a model file front to back, in bounded steps, into one growing buffer.
 *
 * Why: a header is untrusted. Every length in it is checked against the bytes that the file really has before anything
 * is allocated for it, and a file that ends early is reported with the field it ended in. Nothing is memory-mapped: a
 * mapped file that shrinks kills the process, a read that comes up short is an error.
 * Invariant: the buffer never holds more than twice what was walked plus one step, and never more than
 * HEADER_BYTES_MAX. The header of Qwen3.5-397B (248,320 tokens, as many merges, 1,100 tensors) takes 11 MB.
 */
import { closeSync, constants, fstatSync, openSync, readSync, statSync } from 'node:fs';
import { MoestreamError } from '../errors.ts';

const STEP_BYTES = 1 << 18;
export const HEADER_BYTES_MAX = 1 << 28;
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Shortens and quotes a value from a file for a message: control characters must not reach a terminal. */
export function quoted(value: string): string {
  return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}...` : value);
}

export function decodeUtf8(bytes: Uint8Array): string | undefined {
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
}

function notFound(path: string, why: string, cause?: unknown): MoestreamError {
  return new MoestreamError('MODEL_NOT_FOUND', `${path}: ${why}`, {
    hint: 'Give the path of a .gguf file (of a split model, any of its parts) or of a checkpoint folder.',
    cause,
  });
}

/** Opens a regular file for reading. The kind is looked at first: opening a named pipe would wait for ever. */
export function openModelFile(path: string): { fd: number; sizeBytes: number } {
  try {
    const kind = statSync(path);
    if (kind.isDirectory()) throw notFound(path, 'is a folder, not a model file');
    if (!kind.isFile()) throw notFound(path, 'is not a regular file');
    const fd = openSync(path, constants.O_RDONLY);
    return { fd, sizeBytes: fstatSync(fd).size };
  } catch (error) {
    if (MoestreamError.is(error)) throw error;
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown error';
    throw notFound(path, code === 'ENOENT' ? 'no such file' : `cannot be opened (${code})`, error);
  }
}

export class HeaderReader {
  readonly path: string;
  readonly sizeBytes: number;
  /** Bytes walked so far. */
  positionBytes = 0;
  readonly #fd: number;
  readonly #limitBytes: number;
  #buffer: Buffer;
  #filledBytes = 0;

  constructor(path: string) {
    const { fd, sizeBytes } = openModelFile(path);
    this.path = path;
    this.sizeBytes = sizeBytes;
    this.#fd = fd;
    this.#limitBytes = Math.min(sizeBytes, HEADER_BYTES_MAX);
    this.#buffer = Buffer.alloc(Math.min(STEP_BYTES, this.#limitBytes));
  }

  close(): void {
    closeSync(this.#fd);
  }

  /** An error in this file: `problem` names the field and the offending value. */
  invalid(problem: string, hint?: string): MoestreamError {
    return new MoestreamError(
      'MODEL_INVALID',
      `${this.path}: ${problem}`,
      hint === undefined ? {} : { hint },
    );
  }

  /** Bytes that the header could still have. */
  get remainingBytes(): number {
    return this.#limitBytes - this.positionBytes;
  }

  /** Everything walked so far; the views that metadata keeps point into it. */
  header(): Buffer {
    return this.#buffer.subarray(0, this.positionBytes);
  }

  /** Steps over `byteLength` bytes and returns where they begin in the header. `what` names them in errors. */
  take(byteLength: number, what: string): number {
    if (!Number.isSafeInteger(byteLength) || byteLength > this.remainingBytes)
      throw this.#tooShort(byteLength, what);
    const start = this.positionBytes;
    this.#fill(start + byteLength, what);
    this.positionBytes = start + byteLength;
    return start;
  }

  u8(what: string): number {
    const start = this.take(1, what);
    return this.#buffer.readUInt8(start);
  }

  u32(what: string): number {
    const start = this.take(4, what);
    return this.#buffer.readUInt32LE(start);
  }

  /** A 64-bit count, length or offset; whatever a double cannot hold exactly is refused. */
  u64(what: string): number {
    const start = this.take(8, what);
    const value = this.#buffer.readBigUInt64LE(start);
    if (value > BigInt(Number.MAX_SAFE_INTEGER))
      throw this.invalid(`${what} is ${value}, which no file can hold`);
    return Number(value);
  }

  /** A string of at most `maxBytes` bytes: u64 length and UTF-8. */
  string(maxBytes: number, what: string): string {
    const byteLength = this.u64(`the length of ${what}`);
    if (byteLength > maxBytes)
      throw this.invalid(`${what} is ${byteLength} bytes long, the limit is ${maxBytes}`);
    const start = this.take(byteLength, what);
    const text = decodeUtf8(this.#buffer.subarray(start, start + byteLength));
    if (text === undefined) throw this.invalid(`${what} is not UTF-8`);
    return text;
  }

  #tooShort(byteLength: number, what: string): MoestreamError {
    if (this.positionBytes + byteLength <= this.sizeBytes) {
      return this.invalid(`the header is longer than ${HEADER_BYTES_MAX} bytes, the limit, at ${what}`);
    }
    return this.invalid(
      `the file ends inside ${what}: ${byteLength} bytes wanted at ${this.positionBytes}, the file has ${this.sizeBytes}`,
      'The file is damaged or its download did not finish: fetch it again.',
    );
  }

  #fill(endBytes: number, what: string): void {
    if (endBytes <= this.#filledBytes) return;
    if (endBytes > this.#buffer.length) this.#grow(endBytes);
    while (this.#filledBytes < endBytes) {
      const wantedBytes = Math.min(this.#buffer.length - this.#filledBytes, STEP_BYTES);
      const readBytes = readSync(this.#fd, this.#buffer, this.#filledBytes, wantedBytes, this.#filledBytes);
      // The size was taken at open: a file that shrinks meanwhile ends here instead of looping.
      if (readBytes === 0) throw this.invalid(`the file shrank while ${what} was read`);
      this.#filledBytes += readBytes;
    }
  }

  #grow(endBytes: number): void {
    const grown = Buffer.alloc(
      Math.min(this.#limitBytes, Math.max(endBytes + STEP_BYTES, 2 * this.#buffer.length)),
    );
    this.#buffer.copy(grown, 0, 0, this.#filledBytes);
    this.#buffer = grown;
  }
}
