/**
 * Products with 8-bit activations: every format and every instruction set of this processor, against float64.
 *
 * The bounds follow from the formats. Rounding an activation to 8 bits moves it by at most half a step of its block, so
 * a product is within sum(|weight|) * step / 2 of the exact one; against the product with the rounded activations only
 * float additions are left. Between instruction sets, numbers of rows and of inputs there is no difference at all.
 */
import { describe, expect, test } from 'vitest';
import { AFFINE_BITS, AFFINE_GROUPS, affineType, tensorTypeNamed } from '../../dist/model/affine-types.js';
import { type CpuAddon, loadCpu } from '../../dist/native.js';
import { randomAffine } from '../../scripts/model-maker/affine.js';
import { randomBlocks } from '../../scripts/model-maker/blocks.js';
import { Random } from '../../scripts/model-maker/random.js';

interface KernelAddon extends CpuAddon {
  instructionSets(): string[];
  multiply(
    type: number,
    precision: 'exact' | 'fast',
    instructionSet: string,
    weights: Uint8Array,
    cols: number,
    rows: number,
    activations: Float32Array,
    activationRows: number,
    out: Float32Array,
  ): void;
}

const cpu = loadCpu() as KernelAddon;
const SETS = cpu.instructionSets();

interface Format {
  readonly name: string;
  readonly type: number;
  /** Values per block, and values that share one scale of the activations (0: they stay floats). */
  readonly block: number;
  readonly bytes: number;
  readonly shared: 0 | 32 | 256;
}

const format = (name: string, type: number, block: number, bytes: number, shared: 0 | 32 | 256): Format => ({
  name,
  type,
  block,
  bytes,
  shared,
});

const FORMATS: readonly Format[] = [
  format('F32', 0, 1, 4, 0),
  format('F16', 1, 1, 2, 0),
  format('BF16', 30, 1, 2, 0),
  format('Q8_0', 8, 32, 34, 32),
  format('Q4_0', 2, 32, 18, 32),
  format('Q4_1', 3, 32, 20, 32),
  format('Q5_0', 6, 32, 22, 32),
  format('Q5_1', 7, 32, 24, 32),
  format('IQ4_NL', 20, 32, 18, 32),
  format('MXFP4', 39, 32, 17, 32),
  format('Q2_K', 10, 256, 84, 256),
  format('Q3_K', 11, 256, 110, 256),
  format('Q4_K', 12, 256, 144, 256),
  format('Q5_K', 13, 256, 176, 256),
  format('Q6_K', 14, 256, 210, 256),
  format('IQ2_XXS', 16, 256, 66, 256),
  format('IQ2_XS', 17, 256, 74, 256),
  format('IQ2_S', 22, 256, 82, 256),
  format('IQ3_XXS', 18, 256, 98, 256),
  format('IQ3_S', 21, 256, 110, 256),
  format('IQ4_XS', 23, 256, 136, 256),
  ...AFFINE_BITS.flatMap((bits) =>
    AFFINE_GROUPS.map((group) => {
      const { name, id, blockBytes } = affineType(bits, group)!;
      return format(name, id, group, blockBytes, 32);
    }),
  ),
];

/** Random weights; of an affine type all codes, then all scales, then all biases. */
function randomWeights({ name, block }: Format, values: number, random: Random): Uint8Array {
  const type = tensorTypeNamed(name)!;
  if (type.affine !== undefined) return randomAffine(type, 0.02, values, random);
  return randomBlocks(name, 0.02, values / block, random);
}

interface Case {
  readonly cols: number;
  readonly rows: number;
  readonly inputs: number;
}

class Problem {
  readonly format: Format;
  readonly shape: Case;
  readonly weights: Uint8Array;
  readonly values: Float32Array;
  readonly activations: Float32Array;

  /** The weights start at `startByte` of a larger memory, and end at its end. */
  constructor(format: Format, shape: Case, seed = 1, startByte = 1) {
    this.format = format;
    this.shape = shape;
    const random = new Random(`${format.name} ${shape.cols} ${seed}`);
    const blocks = randomWeights(format, shape.rows * shape.cols, random);
    const memory = new Uint8Array(blocks.length + startByte);
    this.weights = memory.subarray(startByte);
    this.weights.set(blocks);
    this.values = new Float32Array(shape.rows * shape.cols);
    cpu.dequantize(format.type, blocks, this.values);
    // Outliers, and blocks that are zero, as activations have them.
    this.activations = Float32Array.from({ length: shape.inputs * shape.cols }, (_, i) => {
      if (Math.floor(i / 32) % 7 === 3) return 0;
      return random.normal() * (i % 97 === 5 ? 30 : 1);
    });
  }

  run(set: string, precision: 'exact' | 'fast' = 'fast', activations = this.activations): Float32Array {
    const { cols, rows } = this.shape;
    const inputs = activations.length / cols;
    const out = new Float32Array(inputs * rows).fill(Number.NaN);
    cpu.multiply(this.format.type, precision, set, this.weights, cols, rows, activations, inputs, out);
    return out;
  }

  /** For every output: the float64 product with these activations, and the sum of absolute products. */
  product(activations: ArrayLike<number>): { sum: number; size: number }[] {
    const { cols, rows, inputs } = this.shape;
    return Array.from({ length: inputs * rows }, (_, o) => {
      const input = Math.floor(o / rows) * cols;
      const row = (o % rows) * cols;
      let sum = 0;
      let size = 0;
      for (let c = 0; c < cols; c++) {
        const part = this.values[row + c]! * activations[input + c]!;
        sum += part;
        size += Math.abs(part);
      }
      return { sum, size };
    });
  }
}

const f = Math.fround;

function roundHalfEven(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** Rounded to 11 significant bits. */
function roundScale(d: number): number {
  if (d === 0) return 0;
  const unit = 2 ** (Math.floor(Math.log2(d)) - 10);
  return roundHalfEven(d / unit) * unit;
}

/** The rounded activations and, for each, half a step. */
function rounded(activations: Float32Array, cols: number, shared: 32 | 256) {
  const values = new Float64Array(activations.length);
  const halfSteps = new Float64Array(activations.length);
  for (let row = 0; row < activations.length; row += cols) {
    for (let first = 0; first < cols; first += shared) {
      const count = Math.min(shared, cols - first);
      const block = activations.subarray(row + first, row + first + count);
      const largest = block.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
      if (largest === 0) continue;
      const d32 = f(largest / 127);
      const factor = shared === 32 ? f(1 / d32) : f(127 / largest);
      const step = shared === 32 ? roundScale(d32) : f(1 / factor);
      block.forEach((x, i) => {
        values[row + first + i] = roundHalfEven(f(x * factor)) * step;
        halfSteps[row + first + i] = largest / 127 / 2;
      });
    }
  }
  return { values, halfSteps };
}

function bits(values: Float32Array): Uint32Array {
  return new Uint32Array(values.slice().buffer);
}

function shapes(format: Format): Case[] {
  const wide = format.block === 1 ? 3 * 256 + 40 : 3 * 256;
  return [
    { cols: format.block === 1 ? 8 : format.block, rows: 1, inputs: 1 },
    { cols: 256, rows: 7, inputs: 1 },
    { cols: wide, rows: 5, inputs: 3 },
    { cols: format.block === 256 ? 512 : 512 + (format.block > 32 ? 128 : 96), rows: 18, inputs: 4 },
    { cols: 512, rows: 3, inputs: 64 },
  ];
}

describe('the test processor', () => {
  test('runs the portable set and names each set once', () => {
    expect(SETS.at(-1)).toBe('portable');
    expect(new Set(SETS).size).toBe(SETS.length);
    expect(() => new Problem(FORMATS[0]!, { cols: 32, rows: 1, inputs: 1 }).run('sse1')).toThrow(/sse1/);
  });
});

describe.each(FORMATS)('$name', (each) => {
  test.each(shapes(each))('$cols columns, $rows rows, $inputs inputs', (shape) => {
    const problem = new Problem(each, shape);
    const exact = problem.product(problem.activations);
    const outputs = SETS.map((set) => problem.run(set));
    const best = outputs[0]!;
    if (each.shared === 0) {
      expect(bits(best)).toEqual(bits(problem.run('', 'exact')));
    } else {
      const { values, halfSteps } = rounded(problem.activations, shape.cols, each.shared);
      const near = problem.product(values);
      const worst = problem.product(halfSteps);
      best.forEach((found, o) => {
        expect(Math.abs(found - near[o]!.sum)).toBeLessThanOrEqual(1e-5 * near[o]!.size + 1e-30);
        // The scale of 32 values is itself rounded, to 11 bits.
        const bound = worst[o]!.size * 1.001 + exact[o]!.size * 2 ** -10;
        expect(Math.abs(found - exact[o]!.sum)).toBeLessThanOrEqual(bound);
      });
    }
    outputs.forEach((found, i) => {
      expect(bits(found), SETS[i]).toEqual(bits(best));
    });
  });

  test.each(SETS)('%s gives an input the same bits alone and among others, at any byte', (set) => {
    const shape = { cols: 512, rows: 9, inputs: 37 };
    const whole = new Problem(each, shape, 2);
    const together = whole.run(set);
    for (const input of [0, 1, 31, 32, 36]) {
      const alone = whole.run(
        set,
        'fast',
        whole.activations.slice(input * shape.cols, (input + 1) * shape.cols),
      );
      expect(bits(alone)).toEqual(bits(together.subarray(input * shape.rows, (input + 1) * shape.rows)));
    }
    for (const startByte of [0, 2, 3]) {
      expect(bits(new Problem(each, shape, 2, startByte).run(set))).toEqual(bits(together));
    }
  });

  test.each(SETS)('%s lets a value that is no number through', (set) => {
    const problem = new Problem(each, { cols: 512, rows: 2, inputs: 2 });
    const activations = problem.activations.slice();
    activations[512 + 300] = Number.NaN;
    const out = problem.run(set, 'fast', activations);
    expect([...out.subarray(0, 2)].every(Number.isFinite)).toBe(true);
    expect([...out.subarray(2)].every(Number.isNaN)).toBe(true);
  });
});
