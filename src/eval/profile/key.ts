/**
 * For whom a profile was tuned: this machine, the disk that the model lies on, the model, and this version of moestream.
 *
 * The model is known by its size and first bytes, which hold its name, shape and vocabulary: reading them takes a
 * millisecond, where a fingerprint of all tensors would double the start of every command. The host's name is left out:
 * containers get a new one each time.
 */
import { createHash } from 'node:crypto';
import { closeSync, existsSync, openSync, readSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { z } from 'zod';
import { deviceOf } from '../../disk/device.ts';
import { MANIFEST_NAME, packedFolder } from '../../model/packed.ts';

const { version } = createRequire(import.meta.url)('../../../package.json') as { version: string };

const HEAD_BYTES = 256 * 1024;
const GIBIBYTE = 1024 ** 3;
const TEXT_MAX = 512;

const text = z.string().max(TEXT_MAX);

export const keySchema = z.strictObject({
  machine: text,
  disk: text,
  model: text,
  version: text,
});

export type ProfileKey = z.infer<typeof keySchema>;

/** Processor, the cores this process may use, and memory: what decides which settings are good. */
export function machineName(): string {
  const processor = cpus()[0]?.model.trim() ?? 'unknown processor';
  const memory = Math.round(totalmem() / GIBIBYTE);
  return `${process.platform}-${process.arch}, ${processor}, ${availableParallelism()} cores, ${memory} GiB`;
}

export const moestreamVersion: string = version;

/** The key of a model on this machine; undefined where there is no such model, which opening it will say better. */
export function profileKey(modelPath: string): ProfileKey | undefined {
  const file = identifyingFile(modelPath);
  if (file === undefined) return undefined;
  return { machine: machineName(), disk: deviceOf(file), model: modelDigest(file), version };
}

/** The file that stands for a model: the manifest of a packed one, the first part of a split one. */
function identifyingFile(path: string): string | undefined {
  if (!existsSync(path)) return undefined;
  const folder = packedFolder(path);
  const file =
    folder === undefined
      ? join(dirname(path), basename(path).replace(/-\d{5}-of-(\d{5}\.gguf)$/, '-00001-of-$1'))
      : join(folder, MANIFEST_NAME);
  return statSync(file, { throwIfNoEntry: false })?.isFile() === true ? file : undefined;
}

function modelDigest(path: string): string {
  const { size } = statSync(path);
  const head = Buffer.alloc(Math.min(size, HEAD_BYTES));
  const fd = openSync(path, 'r');
  try {
    readSync(fd, head, 0, head.length, 0);
  } finally {
    closeSync(fd);
  }
  return createHash('sha256').update(`${size}\n`).update(head).digest('hex').slice(0, 32);
}

/** The name of the profile's file. */
export function keyDigest(key: ProfileKey): string {
  const { machine, disk, model, version: tuned } = key;
  return createHash('sha256')
    .update(JSON.stringify([machine, disk, model, tuned]))
    .digest('hex')
    .slice(0, 24);
}
