/**
 * What of a pack is done: one line of JSON per finished file, appended after its bytes were read back from the disk.
 *
 * Why: a pack of 180 GB takes minutes to hours and must survive a kill at any point. Invariant: a line stands for a file
 * that was written, synced and verified before the line was; a line that was torn, and whatever is behind it, counts for
 * nothing. The journal goes when the manifest is in place.
 */
import { closeSync, fsyncSync, ftruncateSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { JOURNAL_NAME } from '../model/packed.ts';
import { codeOf, writeError } from './disk.ts';

const FORMAT = 'moestream-pack-journal';
const VERSION = 1;

/** A source file as it was when the pack began. */
export interface SourceStamp {
  readonly name: string;
  readonly sizeBytes: number;
  readonly modifiedMillis: number;
}

export interface JournalHead {
  readonly fingerprint: string;
  readonly files: readonly SourceStamp[];
}

/** A finished file; `crc32` has one number for the dense file and one per expert for a layer. */
export interface JournalEntry {
  readonly file: string;
  readonly sizeBytes: number;
  readonly crc32: readonly number[];
}

export interface JournalText {
  readonly head: JournalHead | undefined;
  readonly entries: readonly JournalEntry[];
  /** Up to where it is sound. */
  readonly soundBytes: number;
}

/** Reads a journal; undefined when there is none. */
export function readJournal(folder: string): JournalText | undefined {
  let bytes: Buffer;
  try {
    bytes = readFileSync(join(folder, JOURNAL_NAME));
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    throw writeError(join(folder, JOURNAL_NAME), error);
  }
  let head: JournalHead | undefined;
  const entries: JournalEntry[] = [];
  let soundBytes = 0;
  for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10, soundBytes)) {
    const value = parsed(bytes.toString('utf8', soundBytes, end));
    if (head === undefined) {
      if (!isHead(value)) break;
      head = { fingerprint: value.fingerprint, files: value.files };
    } else {
      if (!isEntry(value)) break;
      entries.push(value);
    }
    soundBytes = end + 1;
  }
  return { head, entries, soundBytes };
}

export class Journal {
  private readonly path: string;
  private readonly fd: number;
  private endBytes: number;

  /** Goes on with a journal behind its first `soundBytes`, or begins one. */
  static open(folder: string, head: JournalHead, soundBytes: number): Journal {
    const path = join(folder, JOURNAL_NAME);
    let fd: number | undefined;
    try {
      fd = openSync(path, soundBytes > 0 ? 'r+' : 'w');
      ftruncateSync(fd, soundBytes);
      const journal = new Journal(path, fd, soundBytes);
      if (soundBytes === 0) journal.write({ format: FORMAT, version: VERSION, ...head });
      return journal;
    } catch (cause) {
      if (fd !== undefined) closeSync(fd);
      throw writeError(path, cause);
    }
  }

  private constructor(path: string, fd: number, endBytes: number) {
    this.path = path;
    this.fd = fd;
    this.endBytes = endBytes;
  }

  /** Returns when the line is on the disk. */
  append(entry: JournalEntry): void {
    try {
      this.write({ ...entry });
    } catch (cause) {
      throw writeError(this.path, cause);
    }
  }

  close(): void {
    closeSync(this.fd);
  }

  private write(value: Record<string, unknown>): void {
    const line = Buffer.from(`${JSON.stringify(value)}\n`);
    for (let at = 0; at < line.length; ) {
      at += writeSync(this.fd, line, at, line.length - at, this.endBytes + at);
    }
    fsyncSync(this.fd);
    this.endBytes += line.length;
  }
}

export function removeJournal(folder: string): void {
  rmSync(join(folder, JOURNAL_NAME), { force: true });
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

function isHead(value: unknown): value is JournalHead {
  const head = value as Partial<JournalHead & { format: string; version: number }> | null | undefined;
  return (
    head?.format === FORMAT &&
    head.version === VERSION &&
    typeof head.fingerprint === 'string' &&
    Array.isArray(head.files)
  );
}

function isEntry(value: unknown): value is JournalEntry {
  const entry = value as Partial<JournalEntry> | null | undefined;
  return (
    typeof entry?.file === 'string' &&
    Number.isSafeInteger(entry.sizeBytes) &&
    Array.isArray(entry.crc32) &&
    entry.crc32.every((crc) => Number.isInteger(crc) && crc >= 0 && crc < 2 ** 32)
  );
}
