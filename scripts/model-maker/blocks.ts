/**
 * Random blocks of every computable ggml type, with a chosen deviation.
 *
 * Why not quantise random floats: quantising IQ types takes minutes per gigabyte, while any bits are a valid code. So a
 * block is filled with random bits, and only its scale fields are then set so that the dequantised values have mean
 * about 0 and the deviation asked for. Invariant: over a few thousand blocks the deviation is within 3% of `std`.
 * The number behind each recipe is the root mean square of a block whose scale is 1 and whose other bits are random; it
 * follows from the format, e.g. for Q8_0 from the squares of -128..127, whose mean is 5461.5.
 */
import { type GgmlType, ggmlTypeNamed } from '#dist/model/ggml-types.js';
import { toBfloat, toHalf } from './half.ts';
import type { Random } from './random.ts';

/** Writes the scale fields of the block at byte `at`, so that its values are those of scale 1 times `scale`. */
type SetScale = (bytes: Uint8Array, at: number, scale: number) => void;

interface Recipe {
  readonly rmsOfScaleOne: number;
  readonly setScale: SetScale;
}

/** Mean squares of uniformly random fields. */
const SCALE_4_BIT = 77.5;
const SCALE_6_BIT = 1333.5;
const SCALE_6_BIT_SIGNED = 341.5;
const SCALE_8_BIT_SIGNED = 5461.5;
/** Of 0.5 + a 4-bit scale, as the IQ2 and IQ3 formats have it. */
const SCALE_HALF_STEPS = 85.25;
/** Variances of 2, 4 and 5-bit codes around their middle. */
const CODE_2_BIT = 1.25;
const CODE_4_BIT = 21.25;
const CODE_5_BIT = 85.25;
/** Mean squares over the published codebooks, and over the 16 values of 4-bit codes. */
const CODEBOOK = {
  IQ2_XXS: 534.43,
  IQ2_XS: 586.476,
  IQ2_S: 596.842,
  IQ3_XXS: 951.641,
  IQ3_S: 57.672,
  IQ4: 4548,
  MXFP4: 34.25,
} as const;

function putHalf(bytes: Uint8Array, at: number, value: number): void {
  const half = toHalf(value);
  bytes[at] = half & 255;
  bytes[at + 1] = half >> 8;
}

/** The scale is a half at byte `offsetBytes` of the block. */
function scaleAt(offsetBytes: number, meanSquare: number): Recipe {
  return {
    rmsOfScaleOne: Math.sqrt(meanSquare),
    setScale: (bytes, at, scale) => putHalf(bytes, at + offsetBytes, scale),
  };
}

/**
 * Codes of these types reach further below 0 than above it. A scale of random sign evens that out; otherwise the mean, a
 * tenth of the deviation, would multiply the all-ones direction by 7 in every matrix of 4096 columns.
 */
function signedScale(meanSquare: number): Recipe {
  return {
    rmsOfScaleOne: Math.sqrt(meanSquare),
    setScale: (bytes, at, scale) => putHalf(bytes, at, (bytes[at]! & 1) === 0 ? scale : -scale),
  };
}

/** Codes count from 0, and a minimum beside the scale moves their middle to 0. */
function scaleAndMinimum(middle: number, minimumSign: 1 | -1, meanSquare: number): Recipe {
  return {
    rmsOfScaleOne: Math.sqrt(meanSquare),
    setScale: (bytes, at, scale) => {
      putHalf(bytes, at, scale);
      putHalf(bytes, at + 2, minimumSign * middle * scale);
    },
  };
}

/**
 * Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima in 12 bytes. Each minimum is made equal to its scale: the
 * second four bytes repeat the first, and both halves of each of the last four bytes agree.
 */
function kScalesAndMinima(middle: number, meanSquare: number): Recipe {
  const halves = scaleAndMinimum(middle, 1, meanSquare);
  return {
    rmsOfScaleOne: halves.rmsOfScaleOne,
    setScale: (bytes, at, scale) => {
      halves.setScale(bytes, at, scale);
      bytes.copyWithin(at + 8, at + 4, at + 8);
      for (let i = 12; i < 16; i++) bytes[at + i] = 17 * (bytes[at + i]! & 15);
    },
  };
}

/** Q2_K: each of 16 bytes is a 4-bit scale and a 4-bit minimum, made equal; the two halves stand at the end. */
const Q2_K: Recipe = {
  rmsOfScaleOne: Math.sqrt(SCALE_4_BIT * CODE_2_BIT),
  setScale: (bytes, at, scale) => {
    for (let i = 0; i < 16; i++) bytes[at + i] = 17 * (bytes[at + i]! & 15);
    putHalf(bytes, at + 80, scale);
    putHalf(bytes, at + 82, 1.5 * scale);
  },
};

/**
 * MXFP4: the scale is a power of two, 2^(exponent - 128). The random byte in its place chooses between the powers below
 * and above, with odds that give the right mean square.
 */
const MXFP4: Recipe = {
  rmsOfScaleOne: Math.sqrt(CODEBOOK.MXFP4),
  setScale: (bytes, at, scale) => {
    const power = Math.floor(Math.log2(scale));
    const oddsOfDouble = ((scale / 2 ** power) ** 2 - 1) / 3;
    bytes[at] = 128 + power + (bytes[at]! < 256 * oddsOfDouble ? 1 : 0);
  },
};

const RECIPES: Readonly<Record<string, Recipe>> = {
  Q4_0: signedScale(21.5),
  Q4_1: scaleAndMinimum(7.5, -1, CODE_4_BIT),
  Q5_0: signedScale(85.5),
  Q5_1: scaleAndMinimum(15.5, -1, CODE_5_BIT),
  Q8_0: scaleAt(0, SCALE_8_BIT_SIGNED),
  Q2_K,
  Q3_K: scaleAt(108, SCALE_6_BIT_SIGNED * 5.5),
  Q4_K: kScalesAndMinima(7.5, SCALE_6_BIT * CODE_4_BIT),
  Q5_K: kScalesAndMinima(15.5, SCALE_6_BIT * CODE_5_BIT),
  Q6_K: scaleAt(208, SCALE_8_BIT_SIGNED * SCALE_6_BIT_SIGNED),
  IQ2_XXS: scaleAt(0, (SCALE_HALF_STEPS / 16) * CODEBOOK.IQ2_XXS),
  IQ2_XS: scaleAt(0, (SCALE_HALF_STEPS / 16) * CODEBOOK.IQ2_XS),
  IQ2_S: scaleAt(0, (SCALE_HALF_STEPS / 16) * CODEBOOK.IQ2_S),
  IQ3_XXS: scaleAt(0, (SCALE_HALF_STEPS / 4) * CODEBOOK.IQ3_XXS),
  IQ3_S: scaleAt(0, SCALE_HALF_STEPS * 4 * CODEBOOK.IQ3_S),
  IQ4_NL: signedScale(CODEBOOK.IQ4),
  IQ4_XS: scaleAt(0, SCALE_6_BIT_SIGNED * CODEBOOK.IQ4),
  MXFP4,
};

/** Blocks differ in scale by up to a quarter, as real ones do; the second factor keeps the mean square at 1. */
const SPREAD = 0.25;
const SPREAD_RMS = Math.sqrt(1 + SPREAD ** 2 / 3);

type PutFloat = (view: DataView, index: number, value: number) => void;
const FLOATS: Readonly<Record<string, PutFloat>> = {
  F32: (view, index, value) => view.setFloat32(4 * index, value, true),
  F16: (view, index, value) => view.setUint16(2 * index, toHalf(value), true),
  BF16: (view, index, value) => view.setUint16(2 * index, toBfloat(value), true),
};

/** The types that this file can make, by name. */
export const RANDOM_TYPES: readonly string[] = [...Object.keys(FLOATS), ...Object.keys(RECIPES)];

/** Fills `bytes`, a whole number of blocks, with random values of deviation `std`. */
export function fillRandomBlocks(bytes: Uint8Array, type: GgmlType, std: number, random: Random): void {
  const putFloat = FLOATS[type.name];
  if (putFloat !== undefined) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const count = bytes.length / type.blockBytes;
    for (let i = 0; i < count; i++) putFloat(view, i, std * random.normal());
    return;
  }
  const recipe = RECIPES[type.name]!;
  const scale = std / recipe.rmsOfScaleOne / SPREAD_RMS;
  random.fillBytes(bytes);
  for (let at = 0; at < bytes.length; at += type.blockBytes) {
    recipe.setScale(bytes, at, scale * random.between(1 - SPREAD, 1 + SPREAD));
  }
}

/** `count` random blocks of the named type. */
export function randomBlocks(name: string, std: number, count: number, random: Random): Uint8Array {
  const type = ggmlTypeNamed(name);
  const bytes = new Uint8Array(count * type.blockBytes);
  fillRandomBlocks(bytes, type, std, random);
  return bytes;
}
