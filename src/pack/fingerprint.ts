/**
 * Which model a file is, without reading all of it: its metadata (of a checkpoint its configuration and tokenizer), every
 * tensor's name, type and shape, and four samples of every tensor's bytes. Two quantisations, two fine-tunes or two random
 * models differ in samples; the same model in one file or in several is the same. It answers "is this the model that was begun", not "is it undamaged".
 */
import { createHash, type Hash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { MoestreamError } from '../errors.ts';
import type { Checkpoint, StoredTensor } from '../model/checkpoint.ts';
import type { Gguf } from '../model/gguf.ts';
import type { SourceFile } from '../model/model-source.ts';
import type { Place } from '../model/places.ts';
import { loadIo } from '../native.ts';
import { textsOf } from './checkpoint-texts.ts';
import { openBuffered } from './disk.ts';

const SAMPLES = 4;
const SAMPLE_BYTES = 1024;

export function isSplitKey(key: string): boolean {
  return key.startsWith('split.');
}

/** A tensor, and all that is said about it. */
interface Sampled extends Place {
  readonly label: string;
}

export function fingerprintOf(source: Gguf | Checkpoint): string {
  const hash = createHash('sha256');
  if ('stored' in source) {
    for (const { name, path } of textsOf(source)) {
      hash.update(`\n${name}\n`);
      hash.update(readFileSync(path));
    }
    const { stored } = source;
    const label = ({ name, dtype, shape }: StoredTensor): string => `${name} ${dtype} ${shape.join('x')}`;
    // Whichever shard a tensor is in, it counts in the same place.
    const sorted = [...stored].sort((a, b) => (a.name < b.name ? -1 : 1));
    return finish(
      hash,
      source.files,
      sorted.map((tensor) => ({ ...tensor, label: label(tensor) })),
    );
  }
  for (const key of source.metadata.keys) {
    if (!isSplitKey(key)) hash.update(source.metadata.pairBytes(key));
  }
  const tensors = [...source.tensors.values()].map((tensor) => ({
    ...tensor,
    label: `${tensor.name} ${tensor.type.name} ${tensor.shape.join('x')}`,
  }));
  return finish(hash, source.files, tensors);
}

/** Adds samples of the tensors. */
function finish(hash: Hash, files: readonly SourceFile[], tensors: readonly Sampled[]): string {
  const io = loadIo();
  const fds: number[] = [];
  const sample = Buffer.alloc(SAMPLE_BYTES);
  try {
    for (const file of files) fds.push(openBuffered(io, file.path));
    for (const tensor of tensors) {
      hash.update(`\n${tensor.label}\n`);
      const lastStart = Math.max(0, tensor.byteLength - SAMPLE_BYTES);
      for (let index = 0; index < SAMPLES; index++) {
        const start = Math.floor((lastStart * index) / (SAMPLES - 1));
        const byteLength = Math.min(SAMPLE_BYTES, tensor.byteLength);
        const offsetBytes = tensor.offsetBytes + start;
        const count = io.readAt(fds[tensor.file]!, offsetBytes, byteLength, sample, 0);
        if (count !== byteLength) {
          const problem = count < 0 ? io.errnoName(-count) : `only ${count} bytes`;
          const { path } = files[tensor.file]!;
          throw new MoestreamError('READ_FAILED', `${problem} reading ${path} at byte ${offsetBytes}`);
        }
        hash.update(sample.subarray(0, byteLength));
      }
    }
  } finally {
    for (const fd of fds) io.close(fd);
  }
  return `sha256:${hash.digest('hex')}`;
}
