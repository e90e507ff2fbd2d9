/**
 * Every block format, bit for bit.
 *
 * The fixtures are the first blocks of a larger set of vectors, so that a bare clone tests every format; the whole set
 * (16 to 65 thousand values each, which reach every codebook entry) runs where it lies beside the repository.
 */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { AFFINE_BITS, AFFINE_GROUPS, affineType } from '../../dist/model/affine-types.js';
import { loadCpu } from '../../dist/native.js';
import { Random } from '../../scripts/model-maker/random.js';

interface VectorSet {
  readonly type_id: number;
  readonly bytes: number;
  readonly blocks: number;
  readonly values: number;
}

const cpu = loadCpu();
const FIXTURES = new URL('../fixtures/dequant/', import.meta.url);
const FULL = new URL('../../../shared/golden/dequant/', import.meta.url);

function readIndex(folder: URL): Record<string, VectorSet> {
  return JSON.parse(readFileSync(new URL('index.json', folder), 'utf8'));
}

function readBytes(folder: URL, name: string): Uint8Array {
  return new Uint8Array(readFileSync(new URL(name, folder)));
}

/** Bits, not values: a NaN or a negative zero must be the same one. */
function firstDifference(found: Float32Array, expected: Float32Array): string | undefined {
  const foundBits = new Uint32Array(found.buffer);
  const expectedBits = new Uint32Array(expected.buffer);
  const at = foundBits.findIndex((bits, i) => bits !== expectedBits[i]);
  return at < 0 ? undefined : `value ${at} is ${found[at]}, expected ${expected[at]}`;
}

function check(folder: URL, name: string, set: VectorSet): void {
  const blocks = readBytes(folder, `${name}.blk`);
  const expected = new Float32Array(readBytes(folder, `${name}.f32`).buffer);
  expect(blocks.length).toBe(set.blocks * set.bytes);
  expect(expected.length).toBe(set.values);
  const found = new Float32Array(set.values);
  cpu.dequantize(set.type_id, blocks, found);
  expect(firstDifference(found, expected)).toBeUndefined();
}

const sets = Object.entries(readIndex(FIXTURES));

describe('dequantisation is bit exact', () => {
  test.each(sets)('%s, first blocks', (name, set) => check(FIXTURES, name, set));

  test.for(sets)('%s, all blocks', ([name], { skip }) => {
    skip(!existsSync(FULL), 'the full vectors are not beside the repository (../shared/golden/dequant)');
    check(FULL, name, readIndex(FULL)[name]!);
  });

  test('F32 passes through', () => {
    const values = Float32Array.of(0, -0, 1.5, -3e38, 1e-42, Number.POSITIVE_INFINITY);
    const found = new Float32Array(values.length);
    cpu.dequantize(0, new Uint8Array(values.buffer), found);
    expect(firstDifference(found, values)).toBeUndefined();
  });

  test('blocks may start at any byte', () => {
    const [name, set] = sets.find(([each]) => each === 'Q6_K')!;
    const blocks = readBytes(FIXTURES, `${name}.blk`);
    const aligned = new Float32Array(set.values);
    cpu.dequantize(set.type_id, blocks, aligned);
    for (const shift of [1, 2, 3]) {
      const shifted = new Uint8Array(blocks.length + shift).subarray(shift);
      shifted.set(blocks);
      const found = new Float32Array(set.values);
      cpu.dequantize(set.type_id, shifted, found);
      expect(firstDifference(found, aligned)).toBeUndefined();
    }
  });
});

/** The value of a bfloat16. */
function bfloat(bits: number): number {
  return new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!;
}

describe.each(AFFINE_BITS)('affine codes of %i bits', (bits) => {
  test.each(AFFINE_GROUPS)('in groups of %i are code * scale + bias, low bits first', (group) => {
    const random = new Random(`affine ${bits} ${group}`);
    const groups = 40;
    const values = groups * group;
    const bytes = new Uint8Array((values / 8) * bits + 4 * groups);
    random.fillBytes(bytes);
    const codesEnd = (values / 8) * bits;
    const halfAt = (at: number): number => bytes[at]! | (bytes[at + 1]! << 8);
    // Any bfloat16 but infinities and what is no number.
    for (let at = codesEnd + 1; at < bytes.length; at += 2)
      if ((bytes[at]! & 0x7f) === 0x7f) bytes[at] = 0x3f;
    const expected = Float32Array.from({ length: values }, (_, value) => {
      let code = 0;
      for (let bit = 0; bit < bits; bit++) {
        const at = value * bits + bit;
        code |= ((bytes[at >> 3]! >> (at & 7)) & 1) << bit;
      }
      const side = codesEnd + 2 * Math.floor(value / group);
      return code * bfloat(halfAt(side)) + bfloat(halfAt(side + 2 * groups));
    });
    const found = new Float32Array(values);
    const shifted = new Uint8Array(bytes.length + 1).subarray(1);
    shifted.set(bytes);
    cpu.dequantize(affineType(bits, group)!.id, shifted, found);
    expect(firstDifference(found, expected)).toBeUndefined();
  });
});

describe('supported types', () => {
  test('are the ones with vectors, and F32', () => {
    const supported = Array.from({ length: 64 }, (_, id) => id).filter((id) => cpu.supportsType(id));
    expect(supported).toEqual([0, ...sets.map(([, set]) => set.type_id)].sort((a, b) => a - b));
  });

  test('and the affine ones, under the ids that the table in TypeScript gives them', () => {
    const ids = AFFINE_BITS.flatMap((bits) => AFFINE_GROUPS.map((group) => affineType(bits, group)!.id));
    const supported = Array.from({ length: 1024 }, (_, id) => 64 + id).filter((id) => cpu.supportsType(id));
    expect(supported).toEqual(ids);
    expect(affineType(7, 64)).toBeUndefined();
    expect(affineType(4, 16)).toBeUndefined();
  });

  test('an unknown type and a partial block are refused', () => {
    expect(() => cpu.dequantize(31, new Uint8Array(16), new Float32Array(16))).toThrow(/not supported/);
    expect(() => cpu.dequantize(8, new Uint8Array(33), new Float32Array(32))).toThrow(/whole/);
    expect(() => cpu.dequantize(8, new Uint8Array(34), new Float32Array(31))).toThrow(/whole/);
    expect(() =>
      cpu.dequantize(8, new Float32Array(34) as unknown as Uint8Array, new Float32Array(32)),
    ).toThrow(TypeError);
  });
});
