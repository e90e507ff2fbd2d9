/**
 * Keys and values as half floats and in blocks of 8 bits: what is kept is the nearest that the format has, what is read
 * gives the same bits on every instruction set, and a model with it stays as near to float32 as the format's step allows.
 */
import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, test } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import { type BackendConfig, type CpuAddon, loadCpu, restoreSequence } from '../../dist/native.js';
import { Random } from '../../scripts/model-maker/random.js';
import { Driver, someIds, tinyConfig, tinyModel } from './tiny-model.js';

type KvType = BackendConfig['kvType'];

interface KvAddon extends CpuAddon {
  vectorSets(): string[];
  keepRows(
    kvType: string,
    set: string,
    rows: Float32Array,
    width: number,
    query: Float32Array,
    weights: Float32Array,
    stored: Uint8Array,
    products: Float32Array,
    sum: Float32Array,
  ): void;
}

const cpu = loadCpu() as KvAddon;
const SETS = cpu.vectorSets();
const drivers: Driver[] = [];
afterAll(() => {
  for (const driver of drivers) driver.backend.close();
});

function drive(...args: ConstructorParameters<typeof Driver>): Driver {
  const driver = new Driver(...args);
  drivers.push(driver);
  return driver;
}

const bits = (values: Float32Array): Uint32Array => new Uint32Array(values.slice().buffer);

interface Format {
  readonly kvType: KvType;
  /** The id of tensors with this layout, and the bytes of a row. */
  readonly id: number;
  readonly bytes: (width: number) => number;
  /** The largest error of a kept number. */
  readonly error: (value: number, largestOfBlock: number) => number;
  readonly widths: readonly number[];
}

/** Half a unit in the last place of a half float. */
const halfUlp = (value: number): number =>
  2 ** (Math.max(-14, Math.floor(Math.log2(Math.abs(value) + 2 ** -30))) - 11);

const FORMATS: readonly Format[] = [
  { kvType: 'f32', id: 0, bytes: (width) => 4 * width, error: () => 0, widths: [1, 24, 32, 64, 200, 256] },
  {
    kvType: 'f16',
    id: 1,
    bytes: (width) => 2 * width,
    error: halfUlp,
    widths: [1, 24, 32, 64, 96, 200, 256],
  },
  {
    kvType: 'q8_0',
    id: 8,
    bytes: (width) => (width / 32) * 34,
    // Half a step of the code, and 127 times the rounding of the step.
    error: (_, largest) => (largest / 127 / 2) * 1.0001 + 127 * halfUlp(largest / 127),
    widths: [32, 64, 96, 160, 224, 256],
  },
];

interface Kept {
  readonly stored: Uint8Array;
  readonly products: Float32Array;
  readonly sum: Float32Array;
}

function keep(
  kvType: KvType,
  set: string,
  rows: Float32Array,
  query: Float32Array,
  weights: Float32Array,
): Kept {
  const width = query.length;
  const format = FORMATS.find((each) => each.kvType === kvType)!;
  // At an odd address, as nothing is promised about one.
  const stored = new Uint8Array(format.bytes(width) * weights.length + 1).subarray(1);
  const products = new Float32Array(weights.length).fill(Number.NaN);
  const sum = new Float32Array(width).fill(Number.NaN);
  cpu.keepRows(kvType, set, rows, width, query, weights, stored, products, sum);
  return { stored, products, sum };
}

/** Rows of every magnitude: ordinary ones, tiny ones, ones with outliers, zeros. */
function someRows(count: number, width: number, random: Random): Float32Array {
  return Float32Array.from({ length: count * width }, (_, i) => {
    const row = Math.floor(i / width);
    if (row % 7 === 5) return 0;
    const size = [1, 30, 1e-3, 1e-7, 1][row % 5]!;
    return random.normal() * size * (i % 61 === 3 ? 50 : 1);
  });
}

describe.each(FORMATS)('rows kept as $kvType', ({ kvType, id, bytes, error, widths }) => {
  test.each(widths)('%i wide: the nearest numbers, the same bits on every instruction set', (width) => {
    const random = new Random(`${kvType} ${width}`);
    const count = 71;
    const rows = someRows(count, width, random);
    const query = Float32Array.from({ length: width }, () => random.normal());
    const weights = Float32Array.from({ length: count }, () => Math.abs(random.normal()));
    const results = SETS.map((set) => keep(kvType, set, rows, query, weights));
    const { stored, products, sum } = results[0]!;
    results.forEach((other, i) => {
      expect(other.stored, SETS[i]).toEqual(stored);
      expect(bits(other.products), SETS[i]).toEqual(bits(products));
      expect(bits(other.sum), SETS[i]).toEqual(bits(sum));
    });

    expect(stored.length).toBe(count * bytes(width));
    const kept = new Float32Array(rows.length);
    cpu.dequantize(id, stored, kept);
    const sums = new Float64Array(width);
    const sizes = new Float64Array(width);
    for (let p = 0; p < count; p++) {
      let product = 0;
      let size = 0;
      for (let i = 0; i < width; i++) {
        const at = p * width + i;
        const block = rows.subarray(at - (i % 32), p * width + Math.min(width, i - (i % 32) + 32));
        const largest = block.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
        if (Math.abs(kept[at]! - rows[at]!) > error(rows[at]!, largest)) {
          expect.fail(`row ${p}, value ${i}: ${rows[at]} is kept as ${kept[at]}`);
        }
        product += query[i]! * kept[at]!;
        size += Math.abs(query[i]! * kept[at]!);
        sums[i]! += weights[p]! * kept[at]!;
        sizes[i]! += Math.abs(weights[p]! * kept[at]!);
      }
      expect(Math.abs(products[p]! - product)).toBeLessThanOrEqual(1e-5 * size + 1e-30);
    }
    for (let i = 0; i < width; i++) {
      expect(Math.abs(sum[i]! - sums[i]!)).toBeLessThanOrEqual(1e-5 * sizes[i]! + 1e-30);
    }
  });

  test('a number that is none stays none', () => {
    for (const set of SETS) {
      for (const strange of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        const row = new Float32Array(64).fill(1);
        row[40] = strange;
        const { sum } = keep(kvType, set, row, new Float32Array(64).fill(1), Float32Array.of(1));
        expect(Number.isFinite(sum[40]!)).toBe(false);
        expect(sum[0]).toBeCloseTo(1, 2);
      }
    }
  });
});

test('half floats are rounded to nearest, ties to even, at every exponent', () => {
  const encode = (values: number[]): number[] => {
    const rows = Float32Array.from(values);
    const found = SETS.map((set) =>
      keep('f16', set, rows, new Float32Array(rows.length), Float32Array.of(1)),
    );
    for (const other of found) expect(other.stored).toEqual(found[0]!.stored);
    return [...new Uint16Array(found[0]!.stored.slice().buffer)];
  };
  for (let exponent = -24; exponent <= 15; exponent++) {
    const unit = 2 ** (Math.max(exponent, -14) - 10);
    const first = Math.max(2 ** exponent, unit);
    const code = encode([first])[0]!;
    const steps = [0.5, 0.5 - 2 ** -12, 0.5 + 2 ** -12, 1.5];
    const expected = [code + (code % 2), code, code + 1, code + 1 + ((code + 1) % 2)];
    expect(encode(steps.map((step) => first + step * unit)), `2^${exponent}`).toEqual(expected);
    expect(encode(steps.map((step) => -first - step * unit))).toEqual(expected.map((each) => each | 0x8000));
  }
  expect(encode([65504, 65519.996, 65520, 1e30, Number.POSITIVE_INFINITY])).toEqual([
    0x7bff, 0x7bff, 0x7c00, 0x7c00, 0x7c00,
  ]);
  expect(encode([2 ** -25, 2 ** -25 * 1.001, 0, -0, 1e-40])).toEqual([0, 1, 0, 0x8000, 0]);
});

/** The largest error of a kept number, relative to itself (f16) or to the largest of its block (q8_0). */
const STEP = { f16: 2 ** -11, q8_0: 0.5 / 127 + 2 ** -11 } as const;

describe.each(['qwen35moe', 'qwen3moe'] as const)('%s with heads of 32', (architecture) => {
  const model = tinyModel(architecture, 1, { headDim: 32 });
  const ids = someIds(48, model.config.vocabulary, 7);
  const logits = Object.fromEntries(
    (['f32', 'f16', 'q8_0'] as const).map((kvType) => [kvType, drive(model, { kvType }).sequence(ids, [16])]),
  ) as Record<KvType, Float32Array>;

  // The largest of 32 numbers is about twice their root mean square, and an error spread evenly over a step is 0.58 of
  // its half: keys move a score, and so a weight, by 1.3 of this step, values the output by as much; together 1.8 per
  // attention layer, and the layers add up. With every expert chosen nothing decides by a hair.
  test.each(['f16', 'q8_0'] as const)('%s moves the logits by two steps per layer at most', (kvType) => {
    const all = tinyModel(architecture, 1, { headDim: 32, expertsPerToken: 8 });
    const exact = drive(all).sequence(ids, [16]);
    const moved = drive(all, { kvType }).sequence(ids, [16]);
    let difference = 0;
    let size = 0;
    exact.forEach((value, i) => {
      difference += (moved[i]! - value) ** 2;
      size += value ** 2;
    });
    const layers = all.config.attentionLayers.reduce((sum, each) => sum + each, 0);
    expect(difference).toBeGreaterThan(0);
    expect(Math.sqrt(difference / size)).toBeLessThan(2 * layers * STEP[kvType]);
  });

  describe.each(['f32', 'f16', 'q8_0'] as const)('%s', (kvType) => {
    test.each([[[1]], [[5]], [[13, 1, 4]]])('chunks of %j give the same bits', (chunks) => {
      expect(bits(drive(model, { kvType }).sequence(ids, chunks))).toEqual(bits(logits[kvType]));
    });

    test.each([2, 3])('%i threads give the same bits', (threads) => {
      expect(bits(drive(model, { kvType, threads }).sequence(ids, [7]))).toEqual(bits(logits[kvType]));
    });

    test('a saved state goes on with the same bits, and with no other type', () => {
      const driver = drive(model, { kvType });
      const half = 20 * model.config.vocabulary;
      driver.sequence(ids.slice(0, 20), [16]);
      const state = new Uint8Array(driver.backend.sequenceBytes(20));
      expect(driver.backend.saveSequence(0, state)).toBe(state.length);
      const other = drive(model, { kvType });
      restoreSequence(other.backend, 1, state);
      const rows = ids.slice(20, 36).map((token, i) => ({ token, position: 20 + i, sequence: 1 }));
      expect(bits(other.step(rows))).toEqual(
        bits(logits[kvType].subarray(half, 36 * model.config.vocabulary)),
      );
      for (const wrong of (['f32', 'f16', 'q8_0'] as const).filter((each) => each !== kvType)) {
        const refusing = drive(model, { kvType: wrong });
        expect(() => restoreSequence(refusing.backend, 0, state)).toThrow(MoestreamError);
      }
    });

    test('the footprint is what is allocated, and all of it can be used', () => {
      const config = tinyConfig(architecture, { headDim: 32, kvType });
      const { kvBytes } = cpu.footprint(config);
      const row = FORMATS.find((each) => each.kvType === kvType)!.bytes(32);
      const attention = config.attentionLayers.reduce((sum, each) => sum + each, 0);
      expect(kvBytes).toBe(2 * attention * 2 * 2 * 64 * row);
      const driver = drive(model, { kvType });
      const perPosition = driver.backend.sequenceBytes(2) - driver.backend.sequenceBytes(1);
      expect(kvBytes).toBe(config.maxSequences * config.contextLength * perPosition);
      const whole = someIds(64, config.vocabulary, 3);
      expect(bits(driver.sequence(whole, [16], 1))).toEqual(bits(driver.sequence(whole, [16], 0)));
    });

    test.skipIf(process.platform !== 'linux')('the address space grows by the footprint', () => {
      const config = tinyConfig(architecture, { headDim: 32, kvType, contextLength: 2 ** 20 });
      const { kvBytes, stateBytes, scratchBytes } = cpu.footprint(config);
      const before = virtualBytes();
      const backend = new cpu.Backend(config);
      const grown = virtualBytes() - before;
      backend.close();
      expect(Math.abs(grown - kvBytes - stateBytes - scratchBytes)).toBeLessThan(4e6);
      expect(kvBytes).toBeGreaterThan(2e8);
    });
  });
});

test('heads of 24 as f16 too, in every chunk', () => {
  const model = tinyModel('qwen35moe');
  const ids = someIds(30, model.config.vocabulary, 7);
  const driver = drive(model, { kvType: 'f16' });
  expect(bits(driver.sequence(ids, [1]))).toEqual(bits(driver.sequence(ids, [16])));
});

test('refused: heads that are no whole blocks, and a type that is none', () => {
  expect(() => cpu.footprint(tinyConfig('qwen3moe', { kvType: 'q8_0' }))).toThrow('whole blocks of kvType');
  expect(() => new cpu.Backend(tinyConfig('qwen3moe', { kvType: 'q8_0' }))).toThrow('whole blocks of kvType');
  expect(() => cpu.footprint(tinyConfig('qwen3moe', { kvType: 'bf16' as 'f16' }))).toThrow(TypeError);
  expect(() => cpu.footprint(tinyConfig('qwen3moe', { kvType: undefined as never }))).toThrow(TypeError);
});

function virtualBytes(): number {
  return Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[0]) * 4096;
}
