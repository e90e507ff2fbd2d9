/**
 * A file of JSON lines that survives a kill at any byte.
 *
 * Why: tuning and research run for hours and must go on where they were. Invariant: a line is on the disk before the call
 * that appended it returns; a last line without its end was never written and is cut off before the next is appended.
 * What a damaged line in the middle means is the reader's decision: it is told where the sound part ends.
 */
import { closeSync, fsyncSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { codeOf, writeError } from '../pack/disk.ts';

/** A log of a year of research is far smaller. */
const LOG_BYTES_MAX = 256 * 1024 ** 2;

export interface SoundLines<Entry> {
  readonly entries: readonly Entry[];
  /** Up to where the file is sound. */
  readonly soundBytes: number;
  /** The number of the first line that is complete and yet no entry, counted from 1. */
  readonly badLine: number | undefined;
}

/** Reads a log; undefined when there is none. `parse` answers undefined for what is no entry. */
export function readLines<Entry>(
  path: string,
  parse: (value: unknown) => Entry | undefined,
): SoundLines<Entry> | undefined {
  let bytes: Buffer;
  try {
    const sizeBytes = statSync(path).size;
    if (sizeBytes > LOG_BYTES_MAX) {
      throw new MoestreamError('LOG_REFUSED', `${path} has ${sizeBytes} bytes, which no log of ours has`);
    }
    bytes = readFileSync(path);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    if (MoestreamError.is(error)) throw error;
    throw new MoestreamError('LOG_REFUSED', `${path} cannot be read: ${codeOf(error)}`, { cause: error });
  }
  const entries: Entry[] = [];
  let soundBytes = 0;
  for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10, soundBytes)) {
    const entry = entryOf(bytes.toString('utf8', soundBytes, end), parse);
    if (entry === undefined) return { entries, soundBytes, badLine: entries.length + 1 };
    entries.push(entry);
    soundBytes = end + 1;
  }
  return { entries, soundBytes, badLine: undefined };
}

function entryOf<Entry>(line: string, parse: (value: unknown) => Entry | undefined): Entry | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    // Not JSON is not an entry; the caller is told the line.
    return undefined;
  }
  return parse(value);
}

/** The end of a log, for one writer. */
export class LineWriter {
  private readonly path: string;
  private readonly fd: number;
  private endBytes: number;

  /** Opens or creates a file and cuts it off behind its first `soundBytes`. */
  constructor(path: string, soundBytes: number) {
    this.path = path;
    this.endBytes = soundBytes;
    let fd: number | undefined;
    try {
      fd = openSync(path, soundBytes > 0 ? 'r+' : 'w', 0o644);
      ftruncateSync(fd, soundBytes);
      fsyncSync(fd);
      syncFolder(dirname(path));
    } catch (cause) {
      if (fd !== undefined) closeSync(fd);
      throw writeError(path, cause);
    }
    this.fd = fd;
  }

  /** Returns when the line is on the disk. */
  append(line: string): void {
    const bytes = Buffer.from(`${line}\n`);
    try {
      for (let at = 0; at < bytes.length; )
        at += writeSync(this.fd, bytes, at, bytes.length - at, this.endBytes + at);
      fsyncSync(this.fd);
    } catch (cause) {
      throw writeError(this.path, cause);
    }
    this.endBytes += bytes.length;
  }

  close(): void {
    closeSync(this.fd);
  }
}

/** A new name in a folder is lasting only when the folder is synced. Not every file system can; then it is as it is. */
export function syncFolder(folder: string): void {
  const fd = openSync(folder, 'r');
  try {
    fsyncSync(fd);
  } catch (error) {
    if (!/^(EINVAL|ENOTSUP|EISDIR|EPERM)$/.test(codeOf(error))) throw error;
  } finally {
    closeSync(fd);
  }
}
