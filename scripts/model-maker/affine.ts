/**
 * Random matrices of MLX's affine types, with a chosen deviation.
 *
 * Any bits are valid codes, so codes are random bytes; each group's scale gives the deviation and its bias moves the
 * middle of the codes to 0. Signs are random, as in real files. Invariant: as in blocks.ts, the deviation is within 3% of
 * `std` over a few thousand groups; and a matrix' bytes depend on the random numbers alone.
 */
import type { GgmlType } from '#dist/model/ggml-types.js';
import { toBfloat } from './half.ts';
import type { Random } from './random.ts';

/** Groups differ in scale by up to a quarter; the second factor keeps the mean square at 1. */
const SPREAD = 0.25;
const SPREAD_RMS = Math.sqrt(1 + SPREAD ** 2 / 3);

/** Scales and biases of `groups` groups, bfloat16 each. */
export function randomFactors(
  type: GgmlType,
  std: number,
  groups: number,
  random: Random,
): { scales: Uint8Array; biases: Uint8Array } {
  const codes = 2 ** type.affine!.bits;
  const middle = (codes - 1) / 2;
  const rms = Math.sqrt((codes ** 2 - 1) / 12);
  const scales = new Uint16Array(groups);
  const biases = new Uint16Array(groups);
  for (let group = 0; group < groups; group++) {
    const spread = random.between(1 - SPREAD, 1 + SPREAD) / SPREAD_RMS;
    const scale = (std / rms) * spread * (random.uniform() < 0.5 ? -1 : 1);
    scales[group] = toBfloat(scale);
    biases[group] = toBfloat(-middle * scale);
  }
  return { scales: new Uint8Array(scales.buffer), biases: new Uint8Array(biases.buffer) };
}

/** A whole matrix: all codes, then all scales, then all biases. */
export function randomAffine(type: GgmlType, std: number, values: number, random: Random): Uint8Array {
  const { bits, group } = type.affine!;
  const codes = new Uint8Array((values / 8) * bits);
  random.fillBytes(codes);
  const { scales, biases } = randomFactors(type, std, values / group, random);
  return Buffer.concat([codes, scales, biases]);
}
