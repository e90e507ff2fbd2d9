/** What was pulled: listing it, checking it against its published hashes, deleting it. Needs no network. */
import { existsSync, readdirSync, rmdirSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { MoestreamError } from '../errors.ts';
import {
  manifestPath,
  modelsFolder,
  type PulledModel,
  pulledQuants,
  pulledRepositories,
  readManifest,
  repositoryFolder,
} from '../model/model-store.ts';
import { codeOf } from '../pack/disk.ts';
import { takeFileLock } from '../pack/lock.ts';
import { hashOf, presentBytes } from './incoming.ts';
import { LOCK_NAME, STORE_LOCK } from './pull.ts';

export interface LocalModel {
  readonly model: PulledModel;
  readonly totalBytes: number;
  readonly presentBytes: number;
}

const pathOf = (repository: string, path: string): string =>
  join(repositoryFolder(repository), ...path.split('/'));

export function localModel(model: PulledModel): LocalModel {
  return {
    model,
    totalBytes: model.files.reduce((sum, file) => sum + file.sizeBytes, 0),
    presentBytes: model.files.reduce(
      (sum, file) => sum + presentBytes(pathOf(model.repository, file.path), file),
      0,
    ),
  };
}

/** Every pulled model, and those that were begun; `onProblem` is told of manifests that cannot be read. */
export function localModels(onProblem: (sentence: string) => void): LocalModel[] {
  const found: LocalModel[] = [];
  for (const repository of pulledRepositories()) {
    for (const quant of pulledQuants(repository)) {
      try {
        const model = readManifest(repository, quant);
        if (model !== undefined) found.push(localModel(model));
      } catch (error) {
        if (!MoestreamError.is(error)) throw error;
        onProblem(`${error.message}; ${error.hint ?? ''}`);
      }
    }
  }
  return found;
}

export interface PulledDamage {
  readonly path: string;
  readonly problem: string;
}

export interface PulledCheck {
  readonly totalBytes: number;
  readonly damages: readonly PulledDamage[];
}

export interface CheckOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly onFile?: (name: string, sizeBytes: number) => void;
}

/** Hashes every file of a pulled model. Resolves whether they are right or not; throws ABORTED and READ_FAILED. */
export async function checkPulled(model: PulledModel, options: CheckOptions = {}): Promise<PulledCheck> {
  const { totalBytes } = localModel(model);
  const damages: PulledDamage[] = [];
  let doneBytes = 0;
  for (const file of model.files) {
    const path = pathOf(model.repository, file.path);
    const sizeBytes = statSync(path, { throwIfNoEntry: false })?.size;
    if (sizeBytes !== file.sizeBytes) {
      const found = sizeBytes === undefined ? 'is not there' : `has ${sizeBytes} bytes`;
      damages.push({ path, problem: `${found}, published are ${file.sizeBytes}` });
      continue;
    }
    const found = await hashOf(path, file, options.signal, (byteCount) => {
      doneBytes += byteCount;
      options.onProgress?.(doneBytes, totalBytes);
    });
    if (found !== file.hash)
      damages.push({ path, problem: `the hash is ${found}, published is ${file.hash}` });
    options.onFile?.(file.path, file.sizeBytes);
  }
  return { totalBytes, damages };
}

/** Deletes a pulled model: its files, less those that another quantisation shares, and its manifest. Returns the bytes. */
export function removeModel(model: PulledModel): number {
  const folder = repositoryFolder(model.repository);
  const release = takeFileLock(join(folder, LOCK_NAME), STORE_LOCK);
  let freedBytes = 0;
  try {
    const shared = new Set(
      pulledQuants(model.repository)
        .filter((quant) => quant !== model.quant)
        .flatMap((quant) => readManifest(model.repository, quant)?.files.map(({ path }) => path) ?? []),
    );
    for (const file of model.files.filter(({ path }) => !shared.has(path))) {
      const path = pathOf(model.repository, file.path);
      freedBytes += presentBytes(path, file);
      for (const name of [path, `${path}.part`, `${path}.part.done`]) remove(name);
      removeEmpty(dirname(path), folder);
    }
    remove(manifestPath(model.repository, model.quant));
  } finally {
    release();
  }
  removeEmpty(folder, modelsFolder());
  return freedBytes;
}

function remove(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch (cause) {
    throw new MoestreamError('WRITE_FAILED', `${path} cannot be deleted (${codeOf(cause)})`, { cause });
  }
}

/** Takes away folders that nothing is left in, from `folder` upwards, up to but not including `root`. */
function removeEmpty(folder: string, root: string): void {
  for (let at = folder; at !== root && at.startsWith(root); at = dirname(at)) {
    if (existsSync(at) && readdirSync(at).length > 0) return;
    if (existsSync(at)) rmdirSync(at);
  }
}
