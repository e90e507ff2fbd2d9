/**
 * A file that is on its way: `NAME.part` for its bytes, `NAME.part.done` for what of it is there.
 *
 * Pieces of 32 MB come in any order over several connections. A line of the second file stands for a piece that was on the
 * disk before the line was written, so a kill at any moment loses the pieces under way and nothing else; a torn last line is
 * no line. Invariant: NAME itself exists only with the published hash: it is renamed from NAME.part after all of it was
 * read back and hashed.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import { type FileHandle, open, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { makeFolder, PieceReader, piecesOf, readAhead, syncFolder, writeError } from '../pack/disk.ts';
import type { RemoteFile } from './listing.ts';

export const SEGMENT_BYTES = 32 * 1024 ** 2;
const JOURNAL_BYTES_MAX = 16 * 1024 ** 2;

export class IncomingFile {
  readonly remote: RemoteFile;
  readonly path: string;
  /** Indices of pieces that are still to come. */
  readonly missing: number[] = [];
  private readonly data: FileHandle;
  private readonly journal: FileHandle;

  /** Opens what a former run left, or begins. Throws WRITE_FAILED or DISK_FULL. */
  static async open(path: string, remote: RemoteFile): Promise<IncomingFile> {
    makeFolder(dirname(path));
    const [partPath, donePath] = [`${path}.part`, `${path}.part.done`];
    const head = `${JSON.stringify({ sizeBytes: remote.sizeBytes, hash: remote.hash, segmentBytes: SEGMENT_BYTES })}\n`;
    const done = existsSync(partPath) ? doneOf(donePath, head, segmentCount(remote)) : undefined;
    let data: FileHandle | undefined;
    try {
      data = await open(partPath, done === undefined ? 'w' : 'r+');
      // Of the final length at once: pieces come in any order. It takes no room before they do.
      await data.truncate(remote.sizeBytes);
      const journal = await open(donePath, 'w');
      const lines = [...(done ?? [])].map((index) => `${index}\n`).join('');
      await journal.write(head + lines);
      await journal.sync();
      return new IncomingFile(path, remote, done ?? new Set(), data, journal);
    } catch (cause) {
      await data?.close();
      throw writeError(partPath, cause);
    }
  }

  private constructor(
    path: string,
    remote: RemoteFile,
    done: ReadonlySet<number>,
    data: FileHandle,
    journal: FileHandle,
  ) {
    this.path = path;
    this.remote = remote;
    this.data = data;
    this.journal = journal;
    for (let index = 0; index < segmentCount(remote); index++) if (!done.has(index)) this.missing.push(index);
  }

  /** Where a piece lies. */
  segment(index: number): { readonly offsetBytes: number; readonly byteLength: number } {
    const offsetBytes = index * SEGMENT_BYTES;
    return { offsetBytes, byteLength: Math.min(SEGMENT_BYTES, this.remote.sizeBytes - offsetBytes) };
  }

  async write(bytes: Uint8Array, offsetBytes: number): Promise<void> {
    try {
      for (let at = 0; at < bytes.length; ) {
        at += (await this.data.write(bytes, at, bytes.length - at, offsetBytes + at)).bytesWritten;
      }
    } catch (cause) {
      throw writeError(`${this.path}.part`, cause);
    }
  }

  /** Notes that a piece is there, once it is on the disk. */
  async segmentDone(index: number): Promise<void> {
    try {
      await this.data.datasync();
      await this.journal.write(`${index}\n`);
    } catch (cause) {
      throw writeError(`${this.path}.part`, cause);
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.data.close(), this.journal.close()]);
  }

  /** Hashes what came and gives the file its name. Throws VERIFY_FAILED, and forgets what came, when it is not right. */
  async finish(signal: AbortSignal | undefined): Promise<void> {
    await this.close();
    const partPath = `${this.path}.part`;
    const found = await hashOf(partPath, this.remote, signal);
    if (found !== this.remote.hash) {
      this.forget();
      throw new MoestreamError(
        'VERIFY_FAILED',
        `${this.path}: the hash is ${found}, published is ${this.remote.hash}`,
        {
          hint: 'What was received is deleted. If this happens again, the server or a proxy changes the bytes.',
        },
      );
    }
    try {
      await rename(partPath, this.path);
    } catch (cause) {
      throw writeError(this.path, cause);
    }
    await syncFolder(dirname(this.path));
    rmSync(`${this.path}.part.done`, { force: true });
  }

  private forget(): void {
    rmSync(`${this.path}.part`, { force: true });
    rmSync(`${this.path}.part.done`, { force: true });
  }
}

function segmentCount({ sizeBytes }: RemoteFile): number {
  return Math.ceil(sizeBytes / SEGMENT_BYTES);
}

/** The pieces that a journal says are there; undefined when it is of another file or damaged at its head. */
function doneOf(path: string, head: string, count: number): Set<number> | undefined {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined || found.size > JOURNAL_BYTES_MAX) return undefined;
  const text = readFileSync(path, 'utf8');
  if (!text.startsWith(head)) return undefined;
  const lines = text.slice(head.length).split('\n');
  // What is behind the last line end was torn.
  lines.pop();
  const done = new Set<number>();
  for (const line of lines) {
    const index = Number(line);
    if (!/^\d+$/.test(line) || index >= count) return undefined;
    done.add(index);
  }
  return done;
}

/** Bytes of a file that are there already, finished or not. */
export function presentBytes(path: string, remote: RemoteFile): number {
  if (statSync(path, { throwIfNoEntry: false })?.size === remote.sizeBytes) return remote.sizeBytes;
  const part = statSync(`${path}.part`, { throwIfNoEntry: false });
  // `blocks` counts what the disk really holds: the file has its full length from the beginning.
  return part === undefined ? 0 : Math.min(remote.sizeBytes, part.blocks * 512);
}

/** In the kind that was published: SHA-256 of the bytes, or git's SHA-1 of a blob. */
export async function hashOf(
  path: string,
  { sizeBytes, hash }: RemoteFile,
  signal: AbortSignal | undefined,
  onBytes: (byteCount: number) => void = () => {},
): Promise<string> {
  const hasher = hash.length === 64 ? createHash('sha256') : createHash('sha1').update(`blob ${sizeBytes}\0`);
  if (sizeBytes === 0) return hasher.digest('hex');
  const reader = new PieceReader(path);
  try {
    for await (const { bytes, error } of readAhead(piecesOf(reader, 0, sizeBytes))) {
      if (signal?.aborted === true) throw new MoestreamError('ABORTED', 'the download was interrupted');
      if (bytes === undefined) throw error;
      hasher.update(bytes);
      onBytes(bytes.length);
    }
  } finally {
    reader.close();
  }
  return hasher.digest('hex');
}
