/**
 * Quantising for rewriting experts: what is written reads back near what was given, as near as the format allows.
 *
 * The bounds are root mean square errors relative to that of normal values, measured with this code and rounded up by a
 * tenth: a wrong nibble, scale or minimum is far outside.
 */
import { describe, expect, it } from 'vitest';
import { affineType, tensorTypeNamed } from '../../dist/model/affine-types.js';
import type { GgmlType } from '../../dist/model/ggml-types.js';
import { loadCpu } from '../../dist/native.js';

const cpu = loadCpu();
const COUNT = 256 * 64;

function bytesOf(type: GgmlType, values: number): Uint8Array {
  return new Uint8Array((values / type.blockSize) * type.blockBytes);
}

/** Normal values by Box and Muller from a small generator. */
function normal(count: number, seed: number): Float32Array {
  let state = seed;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return Float32Array.from(
    { length: count },
    () => 0.02 * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()),
  );
}

function roundTrip(type: GgmlType, values: Float32Array): Float32Array {
  const blocks = bytesOf(type, values.length);
  const found = new Float32Array(values.length);
  cpu.quantize(type.id, values, blocks);
  cpu.dequantize(type.id, blocks, found);
  return found;
}

function relativeError(values: Float32Array, found: Float32Array): number {
  let [error, square] = [0, 0];
  values.forEach((value, index) => {
    error += (value - found[index]!) ** 2;
    square += value ** 2;
  });
  return Math.sqrt(error / square);
}

const CASES: readonly (readonly [GgmlType, number])[] = [
  [tensorTypeNamed('Q8_0')!, 0.006],
  [tensorTypeNamed('Q4_0')!, 0.095],
  [tensorTypeNamed('IQ4_NL')!, 0.083],
  [tensorTypeNamed('Q4_K')!, 0.08],
  [affineType(2, 64)!, 0.53],
  [affineType(3, 64)!, 0.23],
  [affineType(4, 32)!, 0.1],
  [affineType(4, 64)!, 0.11],
  [affineType(6, 64)!, 0.027],
  [affineType(8, 128)!, 0.011],
];

describe.each(CASES)('$name', (type, bound) => {
  it('reads back within its bound', () => {
    const values = normal(COUNT, 7);
    const error = relativeError(values, roundTrip(type, values));
    expect(error).toBeLessThan(bound);
    expect(error).toBeGreaterThan(bound / 2);
  });

  it('keeps zero, and is as good at any size of values', () => {
    expect(roundTrip(type, new Float32Array(256)).every((value) => Math.abs(value) < 1e-6)).toBe(true);
    for (const factor of [0.1, 1, 1e3]) {
      const values = normal(COUNT, 11).map((value) => value * factor);
      expect(relativeError(values, roundTrip(type, values))).toBeLessThan(bound);
    }
  });

  it('takes values of one sign', () => {
    const values = normal(COUNT, 13).map(Math.abs);
    expect(relativeError(values, roundTrip(type, values))).toBeLessThan(bound);
  });

  it('loses nothing more when its own values are quantised again', () => {
    const once = roundTrip(type, normal(COUNT, 17));
    expect(relativeError(once, roundTrip(type, once))).toBeLessThan(bound / 2);
  });
});

describe('refusals', () => {
  it('names types that it does not write, broken blocks and values that are not finite', () => {
    const [q8, q6] = [tensorTypeNamed('Q8_0')!, tensorTypeNamed('Q6_K')!];
    expect(() => cpu.quantize(q6.id, new Float32Array(256), bytesOf(q6, 256))).toThrow(/quantised to/);
    expect(() => cpu.quantize(q8.id, new Float32Array(31), bytesOf(q8, 32))).toThrow(/whole blocks/);
    const infinite = new Float32Array(32).fill(Number.POSITIVE_INFINITY);
    expect(() => cpu.quantize(q8.id, infinite, bytesOf(q8, 32))).toThrow(/not finite/);
  });
});
