/**
 * The shapes of models that can be made: the published ones, and a tiny one with every kind of layer in it.
 *
 * Why: a benchmark says something about the real model only when every matrix has its real size. Invariant: the presets
 * agree with the published configurations; a change that a user asks for (layers, experts, vocabulary) touches nothing
 * else. The number behind it: one layer of 397b has 512 experts of 12,582,912 weights, 6.4 of its 396 billion.
 */
import { MakeModelError } from './error.ts';

export const ARCHITECTURES = ['qwen35moe', 'qwen3next', 'qwen3moe'] as const;
export type Architecture = (typeof ARCHITECTURES)[number];

export const PRESETS = ['tiny', '35b', '397b'] as const;
export type Preset = (typeof PRESETS)[number];

export interface ModelShape {
  readonly architecture: Architecture;
  readonly hidden: number;
  readonly layers: number;
  /** Every so many layers is full attention, the others are Gated DeltaNet. 1: all are full attention. */
  readonly attentionInterval: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotaryDims: number;
  readonly ropeTheta: number;
  /** 0 in every field when no layer is Gated DeltaNet. */
  readonly deltaKeyHeads: number;
  readonly deltaValueHeads: number;
  readonly deltaHeadDim: number;
  readonly convKernel: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly expertWidth: number;
  /** 0 when there is no shared expert. */
  readonly sharedWidth: number;
  readonly vocabulary: number;
  readonly contextLength: number;
}

const HYBRID = {
  architecture: 'qwen35moe',
  attentionInterval: 4,
  kvHeads: 2,
  headDim: 256,
  rotaryDims: 64,
  ropeTheta: 1e7,
  deltaHeadDim: 128,
  convKernel: 4,
} as const;

const SHAPES: Readonly<Record<Preset, ModelShape>> = {
  tiny: {
    ...HYBRID,
    hidden: 256,
    layers: 4,
    heads: 4,
    deltaKeyHeads: 2,
    deltaValueHeads: 8,
    experts: 16,
    expertsPerToken: 4,
    expertWidth: 256,
    sharedWidth: 256,
    vocabulary: 512,
    contextLength: 8192,
  },
  '35b': {
    ...HYBRID,
    hidden: 2048,
    layers: 40,
    heads: 16,
    deltaKeyHeads: 16,
    deltaValueHeads: 32,
    experts: 256,
    expertsPerToken: 8,
    expertWidth: 512,
    sharedWidth: 512,
    vocabulary: 248320,
    contextLength: 262144,
  },
  '397b': {
    ...HYBRID,
    hidden: 4096,
    layers: 60,
    heads: 32,
    deltaKeyHeads: 16,
    deltaValueHeads: 64,
    experts: 512,
    expertsPerToken: 10,
    expertWidth: 1024,
    sharedWidth: 1024,
    vocabulary: 248320,
    contextLength: 262144,
  },
};

/** The older architectures were published with this vocabulary. */
const VOCABULARY_BEFORE_QWEN35 = 151936;

function asArchitecture(shape: ModelShape, architecture: Architecture): ModelShape {
  if (architecture === 'qwen35moe') return shape;
  const vocabulary = Math.min(shape.vocabulary, VOCABULARY_BEFORE_QWEN35);
  if (architecture === 'qwen3next') return { ...shape, architecture, vocabulary };
  // Twice the heads of half the size, as Qwen3-30B-A3B has them beside the 35B: the matrices keep their sizes.
  const headDim = shape.headDim / 2;
  return {
    ...shape,
    architecture,
    vocabulary,
    attentionInterval: 1,
    heads: 2 * shape.heads,
    kvHeads: 2 * shape.kvHeads,
    headDim,
    rotaryDims: headDim,
    ropeTheta: 1e6,
    deltaKeyHeads: 0,
    deltaValueHeads: 0,
    deltaHeadDim: 0,
    convKernel: 0,
    sharedWidth: 0,
  };
}

export interface ShapeChanges {
  readonly arch?: Architecture | undefined;
  readonly layers?: number | undefined;
  readonly experts?: number | undefined;
  readonly expertsPerToken?: number | undefined;
  readonly vocab?: number | undefined;
}

/** Room for the 256 byte tokens and the special ones. */
export const VOCABULARY_MIN = 264;
const LAYERS_MAX = 1024;
const EXPERTS_MAX = 65536;
const VOCABULARY_MAX = 1 << 20;

function checked(what: string, value: number, min: number, max: number): number {
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw new MakeModelError('usage', `${what} is ${value}, it must be a whole number from ${min} to ${max}`);
}

export function modelShape(preset: Preset, changes: ShapeChanges): ModelShape {
  const shape = asArchitecture(SHAPES[preset], changes.arch ?? 'qwen35moe');
  const experts = checked('the number of experts', changes.experts ?? shape.experts, 1, EXPERTS_MAX);
  const expertsPerToken = changes.expertsPerToken ?? Math.min(shape.expertsPerToken, experts);
  return {
    ...shape,
    layers: checked('the number of layers', changes.layers ?? shape.layers, 1, LAYERS_MAX),
    experts,
    expertsPerToken: checked('the number of experts per token', expertsPerToken, 1, experts),
    vocabulary: checked('the vocabulary', changes.vocab ?? shape.vocabulary, VOCABULARY_MIN, VOCABULARY_MAX),
  };
}

export function isAttentionLayer(shape: ModelShape, layer: number): boolean {
  return (layer + 1) % shape.attentionInterval === 0;
}
