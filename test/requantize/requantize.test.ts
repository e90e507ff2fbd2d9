/** Experts in another type: what changes and what does not, for both kinds of files, interrupted or not. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { open } from '../../dist/engine/engine.js';
import { MoestreamError } from '../../dist/errors.js';
import { tensorTypeNamed } from '../../dist/model/affine-types.js';
import { type Model, openModel } from '../../dist/model/model.js';
import { partsOf } from '../../dist/model/places.js';
import { loadCpu } from '../../dist/native.js';
import { requantize } from '../../dist/requantize/requantize.js';
import { contentOf, temporaryFolder } from '../support/folder.js';

const fixture = (name: string): string => fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url));
const GGUF = fixture('golden/nano-F32/model.gguf');
const CHECKPOINT = fixture('mlx/nano-4bit');

/** Every tensor's bytes by name; of affine types codes, scales and biases one behind the other. */
function tensorsOf(model: Model): Map<string, { type: string; bytes: Buffer }> {
  const files = model.files.map((file) => readFileSync(file.path));
  return new Map(
    [...model.source.tensors.values()].map((tensor) => {
      const parts = partsOf(tensor).map(({ file, offsetBytes, byteLength }) =>
        files[file]!.subarray(offsetBytes, offsetBytes + byteLength),
      );
      return [tensor.name, { type: tensor.type.name, bytes: Buffer.concat(parts) }];
    }),
  );
}

function valuesOf({ type, bytes }: { type: string; bytes: Buffer }): Float32Array {
  const { id, blockSize, blockBytes } = tensorTypeNamed(type)!;
  const values = new Float32Array((bytes.length / blockBytes) * blockSize);
  loadCpu().dequantize(id, new Uint8Array(bytes), values);
  return values;
}

function relativeError(before: Float32Array, after: Float32Array): number {
  let [error, square] = [0, 0];
  before.forEach((value, index) => {
    error += (value - after[index]!) ** 2;
    square += value ** 2;
  });
  return Math.sqrt(error / square);
}

async function lastLogits(model: string): Promise<Float32Array> {
  const engine = await open({ model, precision: 'exact', memory: '200M' });
  try {
    let last = new Float32Array();
    await engine.logits([1, 5, 9, 2], (row) => {
      last = row.slice();
    });
    return last;
  } finally {
    await engine.close();
  }
}

const codeOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'no error',
    (error: unknown) => (MoestreamError.is(error) ? error.code : `untyped: ${String(error)}`),
  );

describe.each([
  [GGUF, 'Q8_0', 'Q8_0', 0.007, 'model.gguf'],
  [GGUF, 'Q4_0', 'Q4_0', 0.1, 'model.gguf'],
  [GGUF, 'iq4_nl', 'IQ4_NL', 0.09, 'model.gguf'],
  [CHECKPOINT, 'affine2', 'AFFINE2_G32', 0.5, 'folder'],
  [CHECKPOINT, 'affine8', 'AFFINE8_G32', 0.01, 'folder'],
])('%s to %s', (source, target, type, bound, name) => {
  it('changes the experts, as little as the type allows, and nothing else', async () => {
    const output = join(temporaryFolder(), name);
    const result = await requantize(source, target, output);
    const [before, after] = [openModel(source), openModel(output)];
    const [old, now] = [tensorsOf(before), tensorsOf(after)];
    expect([...now.keys()].sort()).toEqual([...old.keys()].sort());
    const experts = new Set(before.tensors.expertTensors);
    expect(result.conversions).toBe(experts.size);
    for (const [tensor, bytes] of now) {
      if (!experts.has(tensor)) expect(bytes).toEqual(old.get(tensor));
      else {
        expect(bytes.type).toBe(type);
        const error = relativeError(valuesOf(old.get(tensor)!), valuesOf(bytes));
        expect(error).toBeLessThan(bound);
        expect(result.losses[0]!.relativeError).toBeLessThan(bound);
      }
    }
    expect(after.hyperparameters).toEqual({ ...before.hyperparameters, name: after.hyperparameters.name });
  });
});

describe('a requantised model', () => {
  it('computes nearly what the original does', async () => {
    const folder = temporaryFolder();
    await requantize(GGUF, 'Q8_0', join(folder, 'q8.gguf'));
    const [before, after] = [await lastLogits(GGUF), await lastLogits(join(folder, 'q8.gguf'))];
    expect(relativeError(before, after)).toBeLessThan(0.02);
    expect(relativeError(before, after)).toBeGreaterThan(0);
    await requantize(CHECKPOINT, 'affine8', join(folder, 'mlx8'));
    const [codes4, codes8] = [await lastLogits(CHECKPOINT), await lastLogits(join(folder, 'mlx8'))];
    expect(relativeError(codes4, codes8)).toBeLessThan(0.05);
  });
});

describe('interrupted', () => {
  it.each([
    [GGUF, 'Q4_0'],
    [CHECKPOINT, 'affine2'],
  ])('%s gives the same bytes as in one go, at any point', async (source, target) => {
    const isFolder = source === CHECKPOINT;
    const whole = join(temporaryFolder(), 'model');
    await requantize(source, target, whole);
    const expected = isFolder ? contentOf(whole) : readFileSync(whole);
    for (const share of [0.1, 0.5, 0.9]) {
      const output = join(temporaryFolder(), 'model');
      const stop = new AbortController();
      const onProgress = (done: number, total: number): void => {
        if (done > share * total) stop.abort();
      };
      const first = requantize(source, target, output, { threads: 1, signal: stop.signal, onProgress });
      expect(await codeOf(first)).toBe('ABORTED');
      expect(existsSync(isFolder ? join(output, 'config.json') : output)).toBe(false);
      let firstDone: number | undefined;
      await requantize(source, target, output, {
        onProgress: (done) => {
          firstDone ??= done;
        },
      });
      expect(firstDone).toBeGreaterThan(0);
      expect(isFolder ? contentOf(output) : readFileSync(output)).toEqual(expected);
    }
  });

  it('begins anew when what was begun is of another target', async () => {
    const folder = temporaryFolder();
    const output = join(folder, 'model.gguf');
    const stop = new AbortController();
    const onProgress = (done: number, total: number): void => {
      if (done > total / 2) stop.abort();
    };
    await codeOf(requantize(GGUF, 'Q8_0', output, { threads: 1, signal: stop.signal, onProgress }));
    await requantize(GGUF, 'Q4_0', output);
    await requantize(GGUF, 'Q4_0', join(folder, 'other.gguf'));
    expect(readFileSync(output).equals(readFileSync(join(folder, 'other.gguf')))).toBe(true);
  });
});

describe('refusals', () => {
  it.each([
    [GGUF, 'Q6_K', 'USAGE'],
    [GGUF, 'affine2', 'USAGE'],
    [GGUF, 'Q4_K', 'MODEL_UNSUPPORTED'],
    [CHECKPOINT, 'Q4_0', 'USAGE'],
    [CHECKPOINT, 'affine4', 'USAGE'],
    ['absent.gguf', 'Q8_0', 'MODEL_NOT_FOUND'],
  ])('%s to %s is %s', async (source, target, code) => {
    const folder = temporaryFolder();
    expect(await codeOf(requantize(source, target, join(folder, 'out')))).toBe(code);
    expect(contentOf(folder)).toEqual({});
  });

  it('does not write over what is there', async () => {
    const output = join(temporaryFolder(), 'model.gguf');
    writeFileSync(output, 'something');
    expect(await codeOf(requantize(GGUF, 'Q8_0', output))).toBe('USAGE');
    expect(readFileSync(output, 'utf8')).toBe('something');
  });
});
