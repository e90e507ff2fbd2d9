/**
 * Precision `fast` on the model that comes with the repository: 8-bit activations move the logits a little, and nothing
 * else does. Chunks, threads and the order of experts leave every bit as it is.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { openModel } from '../../dist/model/model.js';
import { type BackendConfig, loadCpu, ROW_WORDS } from '../../dist/native.js';

const PATH = fileURLToPath(new URL('../../models/tldr-UD_Q3_K_XL.gguf', import.meta.url));
const model = openModel(PATH);
const file = new Uint8Array(readFileSync(PATH));
const shape = model.hyperparameters;
const MAX_ROWS = 48;

function configOf(changes: Partial<BackendConfig>): BackendConfig {
  return {
    ...shape,
    maxRows: MAX_ROWS,
    maxSequences: 1,
    contextLength: 64,
    threads: 1,
    precision: 'fast',
    kvType: 'f16',
    ...changes,
  };
}

interface Run {
  readonly changes?: Partial<BackendConfig>;
  readonly chunk: number;
  readonly reversed?: boolean;
}

/** The logits after each of these tokens. */
function logitsOf(ids: readonly number[], { changes = {}, chunk, reversed = false }: Run): Float32Array {
  const backend = new (loadCpu().Backend)(configOf(changes));
  for (const t of model.tensors.dense) {
    const bytes = file.subarray(t.offsetBytes, t.offsetBytes + t.byteLength);
    backend.setTensor(t.name, t.layer, t.type.id, t.cols, t.rows, bytes);
  }
  model.tensors.experts.forEach(({ gate, up, down }, layer) => {
    backend.setExpertTypes(layer, gate.type.id, up.type.id, down.type.id);
  });
  backend.seal();
  const rows = new Int32Array(MAX_ROWS * ROW_WORDS);
  const chosen = new Int32Array(MAX_ROWS * shape.expertsPerToken);
  const logits = new Float32Array(ids.length * shape.vocabulary);
  backend.bindRows(rows);
  backend.bindRoutes(chosen, new Float32Array(chosen.length));
  backend.bindSlab([file]);
  backend.bindLogits(logits);
  for (let first = 0; first < ids.length; first += chunk) {
    const count = Math.min(chunk, ids.length - first);
    for (let r = 0; r < count; r++) rows.set([ids[first + r]!, first + r, 0, 0], r * ROW_WORDS);
    backend.begin(count);
    model.tensors.experts.forEach((matrices, layer) => {
      backend.mix(layer);
      backend.shared(layer);
      const experts = [...new Set(chosen.subarray(0, count * shape.expertsPerToken))];
      for (const expert of reversed ? experts.reverse() : experts) {
        const at = (['gate', 'up', 'down'] as const).map(
          (which) => matrices[which].offsetBytes + expert * matrices[which].strideBytes,
        );
        backend.expert(layer, expert, 0, at[0]!, at[1]!, at[2]!);
      }
      backend.combine(layer);
    });
    backend.logits(0, count, first);
  }
  backend.close();
  return logits;
}

function bits(values: Float32Array): Uint32Array {
  return new Uint32Array(values.slice().buffer);
}

describe('precision fast', () => {
  const ids = Array.from({ length: 48 }, (_, i) => (i * 7919 + 13) % shape.vocabulary);
  const fast = logitsOf(ids, { chunk: 48 });

  test.each([
    ['single steps', { chunk: 1 }],
    ['chunks of 5', { chunk: 5 }],
    ['two threads', { chunk: 48, changes: { threads: 2 } }],
    ['three threads, chunks of 7', { chunk: 7, changes: { threads: 3 } }],
    ['experts in another order', { chunk: 48, reversed: true }],
  ] satisfies [string, Run][])('%s give the same bits', (_name, run) => {
    expect(bits(logitsOf(ids, run))).toEqual(bits(fast));
  });

  test('stays within 6 percent of precision exact, and is not it', () => {
    const exact = logitsOf(ids, { chunk: 48, changes: { precision: 'exact', kvType: 'f32' } });
    let difference = 0;
    let size = 0;
    exact.forEach((value, i) => {
      difference += (fast[i]! - value) ** 2;
      size += value ** 2;
    });
    expect(Math.sqrt(difference / size)).toBeLessThan(0.06);
    expect(difference).toBeGreaterThan(0);
  });
});
