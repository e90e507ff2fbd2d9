/**
 * A file on its way over the network: pieces of 32 MB in any order, and the published hash before it gets its name.
 */
import { createHash } from 'node:crypto';
import { statSync } from 'node:fs';
import { MoestreamError } from '../errors.ts';
import { PieceReader, piecesOf, readAhead } from '../pack/disk.ts';
import { PartialFile } from '../pack/partial-file.ts';
import type { RemoteFile } from './listing.ts';

export const SEGMENT_BYTES = 32 * 1024 ** 2;

export class IncomingFile {
  readonly remote: RemoteFile;
  private readonly file: PartialFile;

  /** Opens what a former run left, or begins. Throws WRITE_FAILED or DISK_FULL. */
  static async open(path: string, remote: RemoteFile): Promise<IncomingFile> {
    const { sizeBytes, hash } = remote;
    const identity = JSON.stringify({ sizeBytes, hash, segmentBytes: SEGMENT_BYTES });
    const parts = Math.ceil(sizeBytes / SEGMENT_BYTES);
    return new IncomingFile(remote, await PartialFile.open(path, { sizeBytes, parts, identity }));
  }

  private constructor(remote: RemoteFile, file: PartialFile) {
    this.remote = remote;
    this.file = file;
  }

  /** Indices of pieces that are still to come. */
  get missing(): readonly number[] {
    return this.file.missing;
  }

  /** Where a piece lies. */
  segment(index: number): { readonly offsetBytes: number; readonly byteLength: number } {
    const offsetBytes = index * SEGMENT_BYTES;
    return { offsetBytes, byteLength: Math.min(SEGMENT_BYTES, this.remote.sizeBytes - offsetBytes) };
  }

  write(bytes: Uint8Array, offsetBytes: number): Promise<void> {
    return this.file.write(bytes, offsetBytes);
  }

  segmentDone(index: number): Promise<void> {
    return this.file.partDone(index, this.segment(index).byteLength);
  }

  close(): Promise<void> {
    return this.file.close();
  }

  /** Hashes what came and gives the file its name. Throws VERIFY_FAILED, and forgets what came, when it is not right. */
  async finish(signal: AbortSignal | undefined): Promise<void> {
    await this.close();
    const { path } = this.file;
    const found = await hashOf(`${path}.part`, this.remote, signal);
    if (found !== this.remote.hash) {
      this.file.forget();
      throw new MoestreamError(
        'VERIFY_FAILED',
        `${path}: the hash is ${found}, published is ${this.remote.hash}`,
        {
          hint: 'What was received is deleted. If this happens again, the server or a proxy changes the bytes.',
        },
      );
    }
    await this.file.publish();
  }
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
