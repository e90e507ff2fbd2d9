/**
 * Which tensors a model of a shape has, and what random values make it behave.
 *
 * Why the values matter: a model of unit noise overflows in a few layers, one of small noise answers the same token
 * always. A matrix whose values have deviation 1/sqrt(columns) keeps the size of what it multiplies, so the residual
 * stream grows like the square root of the depth. Router logits get deviation 2: the tenth and the eleventh of 512
 * experts then differ by about 0.1, far from a tie that rounding could turn.
 */
import type { Random } from './random.ts';
import { isAttentionLayer, type ModelShape } from './shapes.ts';

/** A matrix of noise in whatever type the mix says; no two stretches of `distinctRows` rows begin alike. */
export interface Noise {
  readonly kind: 'noise';
  readonly std: number;
  readonly distinctRows: number;
}

/** Values that stay F32 in every mix. */
export interface Values {
  readonly kind: 'values';
  readonly draw: (random: Random) => number;
}

export interface TensorSpec {
  readonly name: string;
  /** shape[0] is contiguous. */
  readonly shape: readonly number[];
  readonly content: Noise | Values;
}

function values(name: string, shape: readonly number[], draw: (random: Random) => number): TensorSpec {
  return { name, shape, content: { kind: 'values', draw } };
}

function norm(name: string, size: number, around = 1): TensorSpec {
  return values(name, [size], (random) => around * (1 + 0.1 * random.normal()));
}

function normal(name: string, shape: readonly number[], std: number): TensorSpec {
  return values(name, shape, (random) => std * random.normal());
}

/** `gain` times what keeps the size of a vector; a third dimension counts experts. */
function matrix(name: string, cols: number, rows: number, gain = 1, experts?: number): TensorSpec {
  const shape = experts === undefined ? [cols, rows] : [cols, rows, experts];
  return { name, shape, content: { kind: 'noise', std: gain / Math.sqrt(cols), distinctRows: rows } };
}

/** Rows stand for tokens: two equal ones would be a tie in every sampling step. */
function vocabularyMatrix(name: string, shape: ModelShape, std: number): TensorSpec {
  const content: Noise = { kind: 'noise', std, distinctRows: 1 };
  return { name, shape: [shape.hidden, shape.vocabulary], content };
}

function attention(shape: ModelShape, at: string): TensorSpec[] {
  const { hidden, heads, kvHeads, headDim } = shape;
  const gated = shape.architecture !== 'qwen3moe';
  return [
    matrix(`${at}attn_q.weight`, hidden, heads * headDim * (gated ? 2 : 1)),
    matrix(`${at}attn_k.weight`, hidden, kvHeads * headDim),
    matrix(`${at}attn_v.weight`, hidden, kvHeads * headDim),
    norm(`${at}attn_q_norm.weight`, headDim, 1.3),
    norm(`${at}attn_k_norm.weight`, headDim, 1.3),
    matrix(`${at}attn_output.weight`, heads * headDim, hidden),
  ];
}

/** The step that a trained bias stands for is between 0.001 and 0.1 on a logarithmic scale: softplus(bias) is the step. */
function stepBias(random: Random): number {
  return Math.log(Math.expm1(Math.exp(random.between(Math.log(1e-3), Math.log(1e-1)))));
}

function deltaNet(shape: ModelShape, at: string): TensorSpec[] {
  const { hidden, deltaKeyHeads, deltaValueHeads, deltaHeadDim } = shape;
  const valueDims = deltaValueHeads * deltaHeadDim;
  const channels = 2 * deltaKeyHeads * deltaHeadDim + valueDims;
  const gates =
    shape.architecture === 'qwen3next'
      ? [matrix(`${at}ssm_ba.weight`, hidden, 2 * deltaValueHeads)]
      : [
          matrix(`${at}ssm_beta.weight`, hidden, deltaValueHeads),
          matrix(`${at}ssm_alpha.weight`, hidden, deltaValueHeads),
        ];
  return [
    matrix(`${at}attn_qkv.weight`, hidden, channels),
    matrix(`${at}attn_gate.weight`, hidden, valueDims),
    normal(`${at}ssm_conv1d.weight`, [shape.convKernel, channels], 0.5),
    values(`${at}ssm_dt.bias`, [deltaValueHeads], stepBias),
    // With the steps above a head forgets between nothing and half of its state per token.
    values(`${at}ssm_a`, [deltaValueHeads], (random) => -random.between(0.05, 8)),
    ...gates,
    norm(`${at}ssm_norm.weight`, deltaHeadDim),
    matrix(`${at}ssm_out.weight`, valueDims, hidden),
  ];
}

/** Half of a random SiLU product is lost, which the gain on the way down makes up for. */
const DOWN_GAIN = 1.5;
const ROUTER_GAIN = 2;
const OUTPUT_GAIN = 3;

function mixture(shape: ModelShape, at: string): TensorSpec[] {
  const { hidden, experts, expertWidth, sharedWidth } = shape;
  const routed = [
    normal(`${at}ffn_gate_inp.weight`, [hidden, experts], ROUTER_GAIN / Math.sqrt(hidden)),
    matrix(`${at}ffn_gate_exps.weight`, hidden, expertWidth, 1, experts),
    matrix(`${at}ffn_up_exps.weight`, hidden, expertWidth, 1, experts),
    matrix(`${at}ffn_down_exps.weight`, expertWidth, hidden, DOWN_GAIN, experts),
  ];
  if (sharedWidth === 0) return routed;
  return [
    ...routed,
    normal(`${at}ffn_gate_inp_shexp.weight`, [hidden], 1 / Math.sqrt(hidden)),
    matrix(`${at}ffn_gate_shexp.weight`, hidden, sharedWidth),
    matrix(`${at}ffn_up_shexp.weight`, hidden, sharedWidth),
    matrix(`${at}ffn_down_shexp.weight`, sharedWidth, hidden, DOWN_GAIN),
  ];
}

/** All tensors in the order in which converters write them. */
export function modelTensors(shape: ModelShape): TensorSpec[] {
  const { hidden } = shape;
  const tensors = [
    vocabularyMatrix('token_embd.weight', shape, 1),
    norm('output_norm.weight', hidden),
    vocabularyMatrix('output.weight', shape, OUTPUT_GAIN / Math.sqrt(hidden)),
  ];
  const secondNorm = shape.architecture === 'qwen3moe' ? 'ffn_norm' : 'post_attention_norm';
  for (let layer = 0; layer < shape.layers; layer++) {
    const at = `blk.${layer}.`;
    tensors.push(norm(`${at}attn_norm.weight`, hidden));
    tensors.push(...(isAttentionLayer(shape, layer) ? attention(shape, at) : deltaNet(shape, at)));
    tensors.push(norm(`${at}${secondNorm}.weight`, hidden), ...mixture(shape, at));
  }
  return tensors;
}
