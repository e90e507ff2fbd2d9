/**
 * Which model a file is, without reading all of it: its metadata, every tensor's name, type and shape, and four samples
 * of every tensor's bytes. Two quantisations, two fine-tunes or two random models differ in samples; the same model in
 * one file or in several is the same. It answers "is this the model that was begun", not "is it undamaged".
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { MoestreamError } from '../errors.ts';
import type { Gguf } from '../model/gguf.ts';
import { codeOf } from './disk.ts';

const SAMPLES = 4;
const SAMPLE_BYTES = 256;

export function isSplitKey(key: string): boolean {
  return key.startsWith('split.');
}

export function fingerprintOf(gguf: Gguf): string {
  const hash = createHash('sha256');
  for (const key of gguf.metadata.keys) {
    if (!isSplitKey(key)) hash.update(gguf.metadata.pairBytes(key));
  }
  const fds = gguf.files.map((file) => openSync(file.path, 'r'));
  const sample = Buffer.alloc(SAMPLE_BYTES);
  try {
    for (const tensor of gguf.tensors.values()) {
      hash.update(`\n${tensor.name} ${tensor.type.name} ${tensor.shape.join('x')}\n`);
      const lastStart = Math.max(0, tensor.byteLength - SAMPLE_BYTES);
      for (let index = 0; index < SAMPLES; index++) {
        const start = Math.floor((lastStart * index) / (SAMPLES - 1));
        const byteLength = Math.min(SAMPLE_BYTES, tensor.byteLength);
        const count = readSync(fds[tensor.file]!, sample, 0, byteLength, tensor.offsetBytes + start);
        hash.update(sample.subarray(0, count));
      }
    }
  } catch (cause) {
    const path = gguf.files[0]!.path;
    throw new MoestreamError('READ_FAILED', `${codeOf(cause)} reading ${path}`, { cause });
  } finally {
    for (const fd of fds) closeSync(fd);
  }
  return `sha256:${hash.digest('hex')}`;
}
