/**
 * The file that `--kl-base` writes and `--kl` reads: a model's probabilities at every scored token (docs/format.md).
 *
 * A probability is kept as its negative logarithm in steps of 1/2048 nat, in 16 bits: 32 nats reach down to 1e-14, and a
 * step is finer than a half float's at any value above 1. Read back, a row is normalised, so that a model is less than
 * 1e-7 nats away from itself; the divergence of another one moves by some 1e-5 of itself. 248,320 tokens take 497 KB a row
 * instead of 993 KB, and only one row is ever in memory.
 *
 * Invariant: a file under the target's name is whole. It is written beside it and renamed behind an fsync; and a reader
 * believes only what size and checksums confirm.
 */
import {
  closeSync,
  fstatSync,
  fsyncSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statfsSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { crc32 } from 'node:zlib';
import { invariant, MoestreamError } from '../errors.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { rowsPerWindow, type Windows } from './windows.ts';

const MAGIC = 'moestrKL';
const VERSION = 1;
const HEADER_BYTES = 64;
const CRC_BYTES = 4;
export const STEPS_PER_NAT = 2048;
const CODE_MAX = 65535;
const VOCABULARY_MAX = 2 ** 24;

export interface BaselineHeader extends Windows {
  readonly vocabulary: number;
}

const recordBytes = (vocabulary: number): number => vocabulary * 2 + CRC_BYTES;

export function baselineBytes(header: BaselineHeader): number {
  const rows = header.windows * rowsPerWindow(header);
  return HEADER_BYTES + header.ids.length * 4 + rows * recordBytes(header.vocabulary);
}

function refused(path: string, reason: string): MoestreamError {
  return new MoestreamError('BASELINE_REFUSED', `${path} ${reason}`, {
    hint: 'Write it anew with --kl-base.',
  });
}

const codeOf = (cause: unknown): string => (cause as NodeJS.ErrnoException | null)?.code ?? String(cause);

/** Header and ids, with their checksum. */
function headerBytes({ vocabulary, ids, windowTokens, windows, from }: BaselineHeader): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + ids.length * 4);
  bytes.write(MAGIC, 'latin1');
  const words = [VERSION, vocabulary, windowTokens, windows, from, STEPS_PER_NAT];
  words.forEach((word, index) => {
    bytes.writeUInt32LE(word, 8 + 4 * index);
  });
  ids.forEach((id, index) => {
    bytes.writeUInt32LE(id, HEADER_BYTES + 4 * index);
  });
  // The checksum's own field is still zero.
  bytes.writeUInt32LE(crc32(bytes), HEADER_BYTES - CRC_BYTES);
  return bytes;
}

/** A row's bytes, and its codes as they lie in it. */
class Record {
  readonly bytes: Buffer;
  readonly codes: Uint16Array;

  constructor(vocabulary: number) {
    const memory = new ArrayBuffer(recordBytes(vocabulary));
    this.bytes = Buffer.from(memory);
    this.codes = new Uint16Array(memory, 0, vocabulary);
  }

  get checksum(): number {
    return crc32(this.bytes.subarray(0, this.bytes.length - CRC_BYTES));
  }
}

export class BaselineWriter {
  private readonly path: string;
  private readonly partial: string;
  private readonly fd: number;
  private readonly record: Record;
  private rowsLeft: number;

  /** Throws DISK_FULL when the disk has no room for the whole file, before anything is computed. */
  constructor(path: string, header: BaselineHeader) {
    this.path = path;
    this.partial = `${path}.${process.pid}.part`;
    this.record = new Record(header.vocabulary);
    this.rowsLeft = header.windows * rowsPerWindow(header);
    try {
      this.fd = openSync(this.partial, 'w');
    } catch (cause) {
      throw new MoestreamError('WRITE_FAILED', `${path} cannot be written (${codeOf(cause)})`, { cause });
    }
    try {
      checkRoom(path, baselineBytes(header));
      this.write(headerBytes(header));
    } catch (error) {
      this.discard();
      throw error;
    }
  }

  /** `total` is the row's logSumExp. */
  add(row: Float32Array, total: number): void {
    invariant(this.rowsLeft-- > 0, 'a baseline has the rows that its header promises');
    const { codes, bytes } = this.record;
    for (let id = 0; id < codes.length; id++) {
      codes[id] = Math.min(CODE_MAX, Math.max(0, Math.round((total - row[id]!) * STEPS_PER_NAT)));
    }
    bytes.writeUInt32LE(this.record.checksum, bytes.length - CRC_BYTES);
    this.write(bytes);
  }

  /** Puts the file in its place. When it throws, `discard` is still to be called. */
  finish(): void {
    invariant(this.rowsLeft === 0, 'a baseline has the rows that its header promises');
    try {
      fsyncSync(this.fd);
      renameSync(this.partial, this.path);
    } catch (cause) {
      throw this.failure(cause);
    }
    closeSync(this.fd);
  }

  /** Leaves nothing behind. */
  discard(): void {
    closeSync(this.fd);
    rmSync(this.partial, { force: true });
  }

  private write(bytes: Buffer): void {
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(this.fd, bytes, at);
    } catch (cause) {
      throw this.failure(cause);
    }
  }

  private failure(cause: unknown): MoestreamError {
    const code = codeOf(cause);
    const full = code === 'ENOSPC' || code === 'EDQUOT';
    return new MoestreamError(
      full ? 'DISK_FULL' : 'WRITE_FAILED',
      `${this.path} cannot be written (${code})`,
      {
        ...(full ? { hint: 'Make room, score fewer tokens, or write to another disk.' } : {}),
        cause,
      },
    );
  }
}

function checkRoom(path: string, neededBytes: number): void {
  const { bavail, bsize } = statfsSync(dirname(path));
  const freeBytes = bavail * bsize;
  if (freeBytes >= neededBytes) return;
  throw new MoestreamError(
    'DISK_FULL',
    `${path} will have ${formatBytes(neededBytes)}, its disk has ${formatBytes(freeBytes)} free`,
    { hint: 'Score fewer tokens, or write to another disk.' },
  );
}

export class BaselineReader {
  readonly header: BaselineHeader;
  private readonly path: string;
  private readonly fd: number;
  private readonly record: Record;
  private nextByte: number;
  private row = 0;

  constructor(path: string) {
    this.path = path;
    try {
      this.fd = openSync(path, 'r');
    } catch (cause) {
      throw new MoestreamError('BASELINE_REFUSED', `${path} cannot be read (${codeOf(cause)})`, { cause });
    }
    try {
      this.header = this.readHeader();
    } catch (error) {
      this.close();
      throw error;
    }
    this.record = new Record(this.header.vocabulary);
    this.nextByte = HEADER_BYTES + this.header.ids.length * 4;
  }

  /** The codes of the next row; overwritten by the next call. */
  next(): Uint16Array {
    const { bytes, codes } = this.record;
    this.read(bytes, this.nextByte);
    this.nextByte += bytes.length;
    if (this.record.checksum !== bytes.readUInt32LE(bytes.length - CRC_BYTES)) {
      throw refused(this.path, `is damaged: row ${this.row} has another checksum`);
    }
    this.row++;
    return codes;
  }

  close(): void {
    closeSync(this.fd);
  }

  private readHeader(): BaselineHeader {
    const sizeBytes = fstatSync(this.fd).size;
    const head = Buffer.alloc(HEADER_BYTES);
    if (sizeBytes < HEADER_BYTES) throw refused(this.path, 'is no file of probabilities: it is too short');
    this.read(head, 0);
    if (head.toString('latin1', 0, 8) !== MAGIC) throw refused(this.path, 'is no file of probabilities');
    const word = (index: number): number => head.readUInt32LE(8 + 4 * index);
    if (word(0) !== VERSION)
      throw refused(this.path, `is of version ${word(0)}, this moestream reads ${VERSION}`);
    const [vocabulary, windowTokens, windows, from] = [word(1), word(2), word(3), word(4)];
    const sane =
      vocabulary >= 1 &&
      vocabulary <= VOCABULARY_MAX &&
      windowTokens >= 2 &&
      windows >= 1 &&
      from < windowTokens - 1;
    if (!sane || word(5) !== STEPS_PER_NAT) throw refused(this.path, 'is damaged: its header makes no sense');
    const count = windowTokens * windows;
    const rows = windows * (windowTokens - 1 - from);
    // The size follows from the header, so nothing larger than the file is ever allocated.
    const expected = HEADER_BYTES + count * 4 + rows * recordBytes(vocabulary);
    if (expected !== sizeBytes)
      throw refused(this.path, `has ${sizeBytes} bytes, its header promises ${expected}`);
    const all = Buffer.alloc(HEADER_BYTES + count * 4);
    this.read(all, 0);
    const ids = Array.from({ length: count }, (_, index) => all.readUInt32LE(HEADER_BYTES + 4 * index));
    const found = { vocabulary, ids, windowTokens, windows, from };
    const whole = headerBytes(found).equals(all);
    if (!whole || ids.some((id) => id >= vocabulary))
      throw refused(this.path, 'is damaged: its header has another checksum');
    return found;
  }

  private read(into: Buffer, atByte: number): void {
    let reached = 0;
    while (reached < into.length) {
      let count: number;
      try {
        count = readSync(this.fd, into, reached, into.length - reached, atByte + reached);
      } catch (cause) {
        throw new MoestreamError(
          'READ_FAILED',
          `${codeOf(cause)} reading ${this.path} at byte ${atByte + reached}`,
          { cause },
        );
      }
      if (count === 0) throw refused(this.path, `ends at byte ${atByte + reached}`);
      reached += count;
    }
  }
}
