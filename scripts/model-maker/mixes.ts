/**
 * Which ggml type each matrix of a published quantisation has.
 *
 * Why: speed depends on the types of the experts, memory on those of everything else, so a benchmark model must mix them
 * as the files do that people download. Invariant: norms, the router, the convolution and everything one-dimensional
 * stay F32 in every mix; the matrices listed in `tensors.ts` as noise are what a mix decides about.
 * The number behind it: UD_Q3_K_XL gives 397b experts of 5,439,488 bytes: twice 1,605,632 of IQ3_XXS and 2,228,224 of
 * IQ4_XS.
 */
import { type GgmlType, ggmlTypeNamed } from '#dist/model/ggml-types.js';
import { RANDOM_TYPES } from './blocks.ts';
import { MakeModelError } from './error.ts';

/** Where a matrix stands: `name` is without `blk.N.`, `layer` is -1 outside the layers. */
interface Place {
  readonly name: string;
  readonly layer: number;
  readonly layers: number;
  readonly outlier: number;
}

interface Mix {
  /** `general.file_type`, the number that llama.cpp knows this mix by. */
  readonly fileType: number;
  readonly hasOutlier: boolean;
  readonly typeAt: (place: Place) => string;
}

/** llama-quantize counts its mixes in an order of its own. */
const FILE_TYPES: Readonly<Record<string, number>> = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q8_0: 7,
  Q5_0: 8,
  Q5_1: 9,
  Q2_K: 10,
  Q3_K: 12,
  Q4_K: 15,
  Q5_K: 17,
  Q6_K: 18,
  IQ2_XXS: 19,
  IQ2_XS: 20,
  IQ3_XXS: 23,
  IQ4_NL: 25,
  IQ3_S: 26,
  IQ2_S: 28,
  IQ4_XS: 30,
  BF16: 32,
  MXFP4: 38,
};

/** Types coarse enough that nobody publishes an output matrix in them. */
const KEEPS_OUTPUT_AT_6_BITS = /^(Q[2345]_K|IQ[23]_|IQ4_XS)/;

/** Everything in one type. */
function plain(type: string): Mix {
  const output = KEEPS_OUTPUT_AT_6_BITS.test(type) ? 'Q6_K' : type;
  return {
    fileType: FILE_TYPES[type]!,
    hasOutlier: false,
    typeAt: ({ name }) => (name === 'output.weight' ? output : type),
  };
}

/** Unsloth's Qwen3.5-397B-A17B-UD-Q3_K_XL: resident matrices at 8 bits, one layer of experts finer than the others. */
const UD_Q3_K_XL: Mix = {
  fileType: 12,
  hasOutlier: true,
  typeAt: ({ name, layer, outlier }) => {
    if (name === 'output.weight') return 'Q6_K';
    const isOutlier = layer >= 0 && layer === outlier;
    if (/^ffn_(gate|up)_exps/.test(name)) return isOutlier ? 'IQ4_XS' : 'IQ3_XXS';
    if (/^ffn_down_exps/.test(name)) return isOutlier ? 'Q5_K' : 'IQ4_XS';
    if (isOutlier && /^(attn_|ssm_out|ffn_(gate|up|down)_shexp)/.test(name)) return 'BF16';
    return 'Q8_0';
  },
};

/**
 * llama-quantize's "M" mixes: values and what the experts write get 6 bits in the first and the last eighth of the
 * layers and in every third between.
 */
function mediumMix(type: string, fileType: number): Mix {
  return {
    fileType,
    hasOutlier: false,
    typeAt: ({ name, layer, layers }) => {
      if (name === 'output.weight') return 'Q6_K';
      const eighth = Math.floor(layers / 8);
      const finer = layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
      return finer && /^(attn_qkv|attn_v|ffn_down_(exps|shexp))\./.test(name) ? 'Q6_K' : type;
    },
  };
}

/** Experts in MXFP4, everything else at 8 bits. */
const MXFP4_MOE: Mix = {
  fileType: 38,
  hasOutlier: false,
  typeAt: ({ name }) => (name.includes('_exps') ? 'MXFP4' : 'Q8_0'),
};

const MIXES: ReadonlyMap<string, Mix> = new Map([
  ['UD_Q3_K_XL', UD_Q3_K_XL],
  ['Q4_K_M', mediumMix('Q4_K', 15)],
  ['Q5_K_M', mediumMix('Q5_K', 17)],
  ['MXFP4_MOE', MXFP4_MOE],
  ...RANDOM_TYPES.map((type): [string, Mix] => [type, plain(type)]),
]);

export const MIX_NAMES: readonly string[] = [...MIXES.keys()];

/** In the published 397B, 27 is the layer whose experts are finer. */
const PUBLISHED_OUTLIER = 27;
const NO_OUTLIER = -1;

export interface MixInUse {
  readonly fileType: number;
  /** The finer layer, or -1. */
  readonly outlier: number;
  readonly typeOf: (tensorName: string, cols: number) => GgmlType;
}

/** `outlier` undefined: as published. */
export function mixFor(mixName: string, layers: number, outlier: number | 'none' | undefined): MixInUse {
  const mix = MIXES.get(mixName);
  if (mix === undefined) {
    throw new MakeModelError('usage', `there is no mix ${mixName}; there are ${MIX_NAMES.join(', ')}`);
  }
  const layer = outlierLayer(mixName, mix, layers, outlier);
  return {
    fileType: mix.fileType,
    outlier: layer,
    typeOf: (tensorName, cols) => {
      const [, number, inLayer] = /^blk\.(\d+)\.(.*)$/.exec(tensorName) ?? [];
      const place = { name: inLayer ?? tensorName, layer: Number(number ?? -1), layers, outlier: layer };
      return fitting(ggmlTypeNamed(mix.typeAt(place)), cols);
    },
  };
}

function outlierLayer(name: string, mix: Mix, layers: number, wanted: number | 'none' | undefined): number {
  if (wanted === 'none') return NO_OUTLIER;
  if (wanted === undefined) {
    return mix.hasOutlier && layers > PUBLISHED_OUTLIER ? PUBLISHED_OUTLIER : NO_OUTLIER;
  }
  if (!mix.hasOutlier) throw new MakeModelError('usage', `the mix ${name} has no outlier layer`);
  if (Number.isInteger(wanted) && wanted >= 0 && wanted < layers) return wanted;
  throw new MakeModelError(
    'usage',
    `the outlier layer is ${wanted}, it must be a layer from 0 to ${layers - 1}`,
  );
}

/** What llama-quantize does as well: rows that are no whole number of blocks get a type with smaller blocks. */
function fitting(type: GgmlType, cols: number): GgmlType {
  if (cols % type.blockSize === 0) return type;
  return ggmlTypeNamed(cols % 32 === 0 ? 'Q8_0' : 'F32');
}
