/**
 * Fetches a model by name: several files at once, in pieces, each file hashed before it gets its name.
 *
 * The way: ask the hub for the files at a commit, choose the set, see that the disk has room, lock the repository's folder,
 * write the manifest (not complete yet), fetch what is missing over a few connections, write the manifest again. A kill at
 * any point leaves a folder that the same command goes on with. Throughput is the network's: eight connections, because a
 * single one of a storage network rarely gets more than a tenth of a fast line.
 */
import { existsSync, rmSync, statfsSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { MoestreamError } from '../errors.ts';
import {
  MANIFEST_VERSION,
  manifestPath,
  type PulledModel,
  readManifest,
  repositoryFolder,
} from '../model/model-store.ts';
import { makeFolder, writeWhole } from '../pack/disk.ts';
import { takeFileLock } from '../pack/lock.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { fetchRange } from './http.ts';
import { IncomingFile, presentBytes } from './incoming.ts';
import { fileUrl, type Hub, type ModelSet, type RemoteFile } from './listing.ts';

export const CONNECTIONS = 8;
/** Left free on the disk: a full one breaks other programs. */
const HEADROOM_BYTES = 256 * 1024 ** 2;

export interface PullOptions {
  readonly connections?: number;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly onFile?: (name: string, sizeBytes: number) => void;
}

export interface RoomReport {
  readonly totalBytes: number;
  readonly presentBytes: number;
  readonly freeBytes: number;
}

export const LOCK_NAME = 'pull.lock';
export const STORE_LOCK = {
  doing: 'at work on the models of this repository',
  code: 'MODEL_BUSY',
} as const;

/** What of a set is here, and the room that the disk has for the rest. */
export function roomFor(repository: string, set: ModelSet): RoomReport {
  const folder = repositoryFolder(repository);
  const present = set.files.reduce((sum, file) => sum + presentBytes(pathOf(folder, file), file), 0);
  let existing = folder;
  while (!existsSync(existing)) existing = dirname(existing);
  const { bavail, bsize } = statfsSync(existing);
  return { totalBytes: set.totalBytes, presentBytes: present, freeBytes: bavail * bsize };
}

/** Throws DISK_FULL when the rest of a set does not fit. */
export function refuseWithoutRoom(
  repository: string,
  { totalBytes, presentBytes: present, freeBytes }: RoomReport,
): void {
  const missing = totalBytes - present;
  if (missing === 0 || missing + HEADROOM_BYTES <= freeBytes) return;
  throw new MoestreamError(
    'DISK_FULL',
    `${repositoryFolder(repository)}: ${formatBytes(missing)} are missing and ${formatBytes(freeBytes)} are free`,
    { hint: 'Make room, set MOESTREAM_MODELS to a folder on a larger disk, or take a smaller quantisation.' },
  );
}

const pathOf = (folder: string, file: RemoteFile): string => join(folder, ...file.path.split('/'));

/** Fetches a set. Resolves with its manifest; throws MoestreamError, after which the same call goes on. */
export async function pull(
  hub: Hub,
  repository: string,
  commit: string,
  set: ModelSet,
  options: PullOptions = {},
): Promise<PulledModel> {
  const folder = repositoryFolder(repository);
  makeFolder(folder);
  const release = takeFileLock(join(folder, LOCK_NAME), STORE_LOCK);
  try {
    refuseWithoutRoom(repository, roomFor(repository, set));
    const old = readManifest(repository, set.quant);
    const manifest: PulledModel = {
      repository,
      quant: set.quant,
      commit,
      entry: set.entry,
      files: set.files,
      complete: false,
      pulledAt: new Date().toISOString(),
    };
    await writeManifest(manifest);
    forgetChanged(folder, old, set);
    const transfer = new Transfer(hub, repository, commit, folder, set, options);
    await transfer.run();
    const whole = { ...manifest, complete: true, pulledAt: new Date().toISOString() };
    await writeManifest(whole);
    return whole;
  } finally {
    release();
  }
}

/** A newer commit may have other bytes under the same name; those of an older one must not pass for them. */
function forgetChanged(folder: string, old: PulledModel | undefined, set: ModelSet): void {
  for (const file of set.files) {
    const before = old?.files.find(({ path }) => path === file.path);
    if (before !== undefined && before.hash !== file.hash) rmSync(pathOf(folder, file), { force: true });
  }
}

function writeManifest(manifest: PulledModel): Promise<void> {
  const text = JSON.stringify({ version: MANIFEST_VERSION, ...manifest }, undefined, 1);
  return writeWhole(manifestPath(manifest.repository, manifest.quant), `${text}\n`);
}

interface Task {
  readonly file: RemoteFile;
  readonly incoming: IncomingFile;
  readonly index: number;
}

/** One download: its connections take pieces in the files' order, and whoever brings a file's last one hashes it. */
class Transfer {
  private readonly hub: Hub;
  private readonly urlOf: (file: RemoteFile) => string;
  private readonly folder: string;
  private readonly set: ModelSet;
  private readonly options: PullOptions;
  private readonly left = new Map<IncomingFile, number>();
  private readonly stop: AbortController;
  private doneBytes = 0;
  private failure: { readonly error: unknown } | undefined;

  constructor(
    hub: Hub,
    repository: string,
    commit: string,
    folder: string,
    set: ModelSet,
    options: PullOptions,
  ) {
    // A connection that fails for good ends the others at once, not when their pieces end.
    const stop = new AbortController();
    const { signal } = hub.network;
    signal?.addEventListener('abort', () => stop.abort(signal.reason));
    if (signal?.aborted === true) stop.abort(signal.reason);
    this.stop = stop;
    this.hub = { ...hub, network: { ...hub.network, signal: stop.signal } };
    this.urlOf = (file) => fileUrl(hub, repository, commit, file.path);
    this.folder = folder;
    this.set = set;
    this.options = options;
  }

  async run(): Promise<void> {
    const tasks = this.tasks();
    const connections = Math.max(1, this.options.connections ?? CONNECTIONS);
    // Shared: each connection takes the next task when it is free.
    const work = async (): Promise<void> => {
      try {
        for await (const task of tasks) await this.fetch(task);
      } catch (error) {
        this.failure ??= { error };
        this.stop.abort(error);
      }
    };
    await Promise.all(Array.from({ length: connections }, work));
    await Promise.all([...this.left.keys()].map((incoming) => incoming.close()));
    if (this.failure !== undefined) throw this.failure.error;
  }

  /** An async generator queues its callers, so several connections may take from it. */
  private async *tasks(): AsyncGenerator<Task> {
    for (const file of this.set.files) {
      const path = pathOf(this.folder, file);
      if (isThere(path, file)) {
        this.advance(file.sizeBytes);
        rmSync(`${path}.part.done`, { force: true });
        continue;
      }
      const incoming = await IncomingFile.open(path, file);
      const missing = [...incoming.missing];
      const missingBytes = missing.reduce((sum, index) => sum + incoming.segment(index).byteLength, 0);
      this.advance(file.sizeBytes - missingBytes);
      this.left.set(incoming, missing.length);
      if (missing.length === 0) await this.finish(incoming);
      for (const index of missing) yield { file, incoming, index };
    }
  }

  private async fetch({ file, incoming, index }: Task): Promise<void> {
    const range = { ...incoming.segment(index), sizeBytes: file.sizeBytes };
    await fetchRange(this.urlOf(file), this.hub.network, range, async (bytes, offsetBytes) => {
      await incoming.write(bytes, offsetBytes);
      this.advance(bytes.length);
    });
    await incoming.segmentDone(index);
    const left = this.left.get(incoming)! - 1;
    this.left.set(incoming, left);
    if (left === 0) await this.finish(incoming);
  }

  private async finish(incoming: IncomingFile): Promise<void> {
    this.left.delete(incoming);
    await incoming.finish(this.hub.network.signal);
    this.options.onFile?.(incoming.remote.path, incoming.remote.sizeBytes);
  }

  private advance(byteCount: number): void {
    this.doneBytes += byteCount;
    this.options.onProgress?.(this.doneBytes, this.set.totalBytes);
  }
}

/** A file under its own name was verified before it got it. A pointer in its place would have another size. */
function isThere(path: string, file: RemoteFile): boolean {
  return statSync(path, { throwIfNoEntry: false })?.size === file.sizeBytes;
}
