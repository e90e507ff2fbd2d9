/**
 * Which model a file is, without reading all of it: its metadata, every tensor's name, type and shape, and four samples
 * of every tensor's bytes. Two quantisations, two fine-tunes or two random models differ in samples; the same model in
 * one file or in several is the same. It answers "is this the model that was begun", not "is it undamaged".
 */
import { createHash } from 'node:crypto';
import { MoestreamError } from '../errors.ts';
import type { Gguf } from '../model/gguf.ts';
import { loadIo } from '../native.ts';
import { openBuffered } from './disk.ts';

const SAMPLES = 4;
const SAMPLE_BYTES = 1024;

export function isSplitKey(key: string): boolean {
  return key.startsWith('split.');
}

export function fingerprintOf(gguf: Gguf): string {
  const hash = createHash('sha256');
  for (const key of gguf.metadata.keys) {
    if (!isSplitKey(key)) hash.update(gguf.metadata.pairBytes(key));
  }
  const io = loadIo();
  const fds: number[] = [];
  const sample = Buffer.alloc(SAMPLE_BYTES);
  try {
    for (const file of gguf.files) fds.push(openBuffered(io, file.path));
    for (const tensor of gguf.tensors.values()) {
      hash.update(`\n${tensor.name} ${tensor.type.name} ${tensor.shape.join('x')}\n`);
      const lastStart = Math.max(0, tensor.byteLength - SAMPLE_BYTES);
      for (let index = 0; index < SAMPLES; index++) {
        const start = Math.floor((lastStart * index) / (SAMPLES - 1));
        const byteLength = Math.min(SAMPLE_BYTES, tensor.byteLength);
        const offsetBytes = tensor.offsetBytes + start;
        const count = io.readAt(fds[tensor.file]!, offsetBytes, byteLength, sample, 0);
        if (count !== byteLength) {
          const problem = count < 0 ? io.errnoName(-count) : `only ${count} bytes`;
          const { path } = gguf.files[tensor.file]!;
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
