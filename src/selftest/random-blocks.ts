/**
 * Random weights of any type, of a size that a model could have.
 *
 * All bits of a block are random but its scales, which would otherwise be infinite or not numbers now and then. They are
 * one power of two, found by letting the CPU backend widen a few blocks: so no format is written down here but where its
 * scales stand.
 */
import { invariant } from '../errors.ts';
import { affineBytes, tensorType } from '../model/affine-types.ts';
import type { GgmlType } from '../model/ggml-types.ts';
import type { CpuAddon } from '../native.ts';

/** Bytes in a block at which half floats stand that scale it. */
const HALF_SCALES: Readonly<Record<string, readonly number[]>> = {
  Q4_0: [0],
  Q4_1: [0, 2],
  Q5_0: [0],
  Q5_1: [0, 2],
  Q8_0: [0],
  Q2_K: [80, 82],
  Q3_K: [108],
  Q4_K: [0, 2],
  Q5_K: [0, 2],
  Q6_K: [208],
  IQ2_XXS: [0],
  IQ2_XS: [0],
  IQ2_S: [0],
  IQ3_XXS: [0],
  IQ3_S: [0],
  IQ4_NL: [0],
  IQ4_XS: [0],
};

/** A block scaled by one byte, the exponent of a power of two. */
const EXPONENT_TYPE = 'MXFP4';

/** Uniform in [0, 2^32), the same sequence for the same seed. */
export type Random = () => number;

export function randomSource(seed: number): Random {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}

/** Uniform in [-1, 1). */
export const signed = (random: Random): number => random() / 2 ** 31 - 1;

/**
 * Fills whole blocks of a type; the values come to about `size` in the square mean. Of an affine type they are laid out as
 * `dequantize` takes them: all codes, then all scales, then all biases.
 */
export function fillRandom(
  cpu: CpuAddon,
  typeId: number,
  random: Random,
  size: number,
  into: Uint8Array,
): void {
  const type = tensorType(typeId);
  const wide = 2 * size;
  if (type.affine !== undefined) fillAffine(type, into, random, size);
  else if (type.name === 'F32') fillFloats(into, () => wide * signed(random));
  else if (type.name === 'BF16' || type.name === 'F16') fillHalves(type, into, random, wide);
  else fillBlocks(cpu, type, into, random, size);
}

function fillBlocks(cpu: CpuAddon, type: GgmlType, into: Uint8Array, random: Random, size: number): void {
  for (let at = 0; at < into.length; at++) into[at] = random() >>> 24;
  setScales(type, into, 0);
  const sample = into.subarray(0, Math.min(into.length, 8 * type.blockBytes));
  const values = new Float32Array((sample.length / type.blockBytes) * type.blockSize);
  cpu.dequantize(type.id, sample, values);
  const mean = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
  setScales(type, into, Math.round(Math.log2(size / mean)));
}

function fillFloats(into: Uint8Array, value: () => number): void {
  const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
  for (let at = 0; at < into.length; at += 4) view.setFloat32(at, value(), true);
}

/** Every group has a scale of its own, and a bias near that which centres its values: one of a neighbour shows. */
function fillAffine(type: GgmlType, into: Uint8Array, random: Random, size: number): void {
  const values = (into.length / type.blockBytes) * type.blockSize;
  const { codes, side } = affineBytes(type, values);
  const steps = 2 ** type.affine!.bits;
  for (let at = 0; at < codes; at++) into[at] = random() >>> 24;
  const view = new DataView(into.buffer, into.byteOffset + codes, 2 * side);
  for (let at = 0; at < side; at += 2) {
    // Equal codes of all values would have a square mean of steps^2 / 12.
    const scale = ((size * Math.sqrt(12)) / steps) * (1 + signed(random) / 2);
    view.setUint16(at, bfloat(scale), true);
    view.setUint16(side + at, bfloat(-scale * ((steps - 1) / 2 + signed(random))), true);
  }
}

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

/** Rounded towards zero. */
function bfloat(value: number): number {
  float[0] = value;
  return word[0]! >>> 16;
}

/** Random signs and fractions under one exponent. */
function fillHalves(type: GgmlType, into: Uint8Array, random: Random, size: number): void {
  const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
  const power = Math.floor(Math.log2(size));
  const [bias, fractionBits] = type.name === 'F16' ? [15, 10] : [127, 7];
  for (let at = 0; at < into.length; at += 2) {
    const bits = random();
    const fraction = bits & ((1 << fractionBits) - 1);
    view.setUint16(at, ((bits >>> 31) << 15) | ((power + bias - 1) << fractionBits) | fraction, true);
  }
}

/** Every scale becomes 2^power. */
function setScales(type: GgmlType, into: Uint8Array, power: number): void {
  const offsets = type.name === EXPONENT_TYPE ? [] : HALF_SCALES[type.name];
  invariant(offsets !== undefined, `the scales of ${type.name} are known`);
  const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
  // The smallest normal half float is 2^-14; below it a power is one bit of the fraction.
  const half = power >= -14 ? (power + 15) << 10 : 1 << (power + 24);
  for (let block = 0; block < into.length; block += type.blockBytes) {
    if (type.name === EXPONENT_TYPE) into[block] = 127 + power;
    for (const offset of offsets) view.setUint16(block + offset, half, true);
  }
}
