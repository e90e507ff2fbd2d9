/**
 * A large file that is written in parts, in any order, over several runs: `NAME.part` for its bytes, `NAME.part.done` for
 * which parts are there.
 *
 * A line of the second file stands for parts that were on the disk before the line was written, so a kill at any moment
 * loses the parts since the last line and nothing else; a torn last line is no line. Its first line says what the file is
 * going to be: another one there means that everything begins anew. Invariant: NAME exists only when it is whole.
 */
import { existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import { type FileHandle, open, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { makeFolder, syncFolder, writeError } from './disk.ts';

const JOURNAL_BYTES_MAX = 64 * 1024 ** 2;
/** A sync for each small part would take longer than writing it. */
const SYNC_BYTES = 32 * 1024 ** 2;

export interface PartialFileShape {
  readonly sizeBytes: number;
  readonly parts: number;
  /** What the file is going to be, as a text without line ends: what was begun with another one does not count. */
  readonly identity: string;
}

export class PartialFile {
  readonly path: string;
  /** Numbers of parts that were not there at the beginning. */
  readonly missing: readonly number[];
  private readonly data: FileHandle;
  private readonly journal: FileHandle;
  private unsynced: number[] = [];
  private unsyncedBytes = 0;

  /** Opens what a former run left, or begins. Throws WRITE_FAILED or DISK_FULL. */
  static async open(path: string, shape: PartialFileShape): Promise<PartialFile> {
    makeFolder(dirname(path));
    const [partPath, donePath] = [`${path}.part`, `${path}.part.done`];
    const head = `${shape.identity}\n`;
    const done = existsSync(partPath) ? doneOf(donePath, head, shape.parts) : undefined;
    let data: FileHandle | undefined;
    try {
      data = await open(partPath, done === undefined ? 'w' : 'r+');
      // Of the final length at once, as parts come in any order. It takes no room before they do.
      await data.truncate(shape.sizeBytes);
      const journal = await open(donePath, 'w');
      await journal.write(head + [...(done ?? [])].map((index) => `${index}\n`).join(''));
      await journal.sync();
      const missing = Array.from({ length: shape.parts }, (_, index) => index).filter(
        (index) => done?.has(index) !== true,
      );
      return new PartialFile(path, missing, data, journal);
    } catch (cause) {
      await data?.close();
      throw writeError(partPath, cause);
    }
  }

  private constructor(path: string, missing: readonly number[], data: FileHandle, journal: FileHandle) {
    this.path = path;
    this.missing = missing;
    this.data = data;
    this.journal = journal;
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

  /** Returns when all that was written is on the disk. */
  async flush(): Promise<void> {
    try {
      await this.data.datasync();
    } catch (cause) {
      throw writeError(`${this.path}.part`, cause);
    }
  }

  /** Notes that all `byteCount` bytes of a part were written. */
  async partDone(index: number, byteCount: number): Promise<void> {
    this.unsynced.push(index);
    this.unsyncedBytes += byteCount;
    if (this.unsyncedBytes >= SYNC_BYTES) await this.sync();
  }

  /** Keeps what is there for the next run. */
  async close(): Promise<void> {
    try {
      await this.sync();
    } finally {
      await Promise.all([this.data.close(), this.journal.close()]);
    }
  }

  /** Gives the closed file its name. */
  async publish(): Promise<void> {
    try {
      await rename(`${this.path}.part`, this.path);
    } catch (cause) {
      throw writeError(this.path, cause);
    }
    await syncFolder(dirname(this.path));
    rmSync(`${this.path}.part.done`, { force: true });
  }

  /** Deletes what came of the closed file. */
  forget(): void {
    rmSync(`${this.path}.part`, { force: true });
    rmSync(`${this.path}.part.done`, { force: true });
  }

  private async sync(): Promise<void> {
    // Taken first: parts that end meanwhile are not covered by this sync.
    const indices = this.unsynced;
    this.unsynced = [];
    this.unsyncedBytes = 0;
    if (indices.length === 0) return;
    await this.flush();
    try {
      await this.journal.write(indices.map((index) => `${index}\n`).join(''));
    } catch (cause) {
      throw writeError(`${this.path}.part`, cause);
    }
  }
}

/** The parts that a journal says are there; undefined when it is of another file or damaged. */
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
