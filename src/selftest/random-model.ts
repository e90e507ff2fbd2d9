/**
 * A random model of a few layers, small enough to run in milliseconds, that uses every part of an architecture; and one
 * run of it through a backend. Weights lie in shared memory as in the engine.
 */
import { affineBytes, tensorType } from '../model/affine-types.ts';
import { rowBytes } from '../model/ggml-types.ts';
import {
  type Backend,
  type BackendAddon,
  type BackendConfig,
  type CpuAddon,
  ROW_POSITION,
  ROW_SEQUENCE,
  ROW_TOKEN,
  ROW_WORDS,
} from '../native.ts';
import { allocateShared, roundUp } from '../pipeline/memory.ts';
import { fillRandom, type Random, randomSource, signed } from './random-blocks.ts';

const F32 = 0;
/** Where tensors start in GGUF files at the most. */
const ALIGN_BYTES = 64;
/** In checkpoints tensors follow a header of any length, without padding: those of affine types may start anywhere. */
const AFFINE_SKEW_BYTES = 3;

/** `hybrid` has DeltaNet and attention layers and a shared expert; `grouped` is its older form; `plain` only attends. */
export type Architecture = 'hybrid' | 'grouped' | 'plain';
export const ARCHITECTURES: readonly Architecture[] = ['hybrid', 'grouped', 'plain'];

export interface RandomModelOptions {
  readonly architecture: Architecture;
  /** The ggml type of the large matrices. */
  readonly type: number;
  readonly kvType: BackendConfig['kvType'];
  /** Widths: the longest block is 256. */
  readonly width: number;
  readonly contextLength: number;
}

/** What `setTensor` takes: the blocks, or codes with their scales and biases. */
type Parts = readonly [bytes: Uint8Array, scales?: Uint8Array, biases?: Uint8Array];

interface Tensor {
  readonly name: string;
  readonly layer: number;
  readonly type: number;
  readonly cols: number;
  readonly rows: number;
  readonly parts: Parts;
}

export interface RandomModel {
  readonly config: BackendConfig;
  readonly type: number;
  readonly tensors: readonly Tensor[];
  readonly slab: Uint8Array;
  /** Bytes from one matrix of an expert to the next; (layer, expert, which) stand behind each other. */
  readonly matrixBytes: number;
  /** Bytes from an affine matrix to its scales and its biases; none of any other. */
  readonly sides: readonly [scales: number, biases: number] | undefined;
}

function configOf({ architecture, kvType, width, contextLength }: RandomModelOptions): BackendConfig {
  const delta = architecture !== 'plain';
  return {
    layers: 2,
    hidden: width,
    vocabulary: 96,
    rmsEpsilon: 1e-6,
    attentionLayers: Uint8Array.of(delta ? 0 : 1, 1),
    heads: 4,
    kvHeads: 2,
    headDim: 64,
    rotaryDims: delta ? 16 : 64,
    ropeTheta: 1e6,
    gatedAttention: delta,
    deltaKeyHeads: delta ? 2 : 0,
    deltaValueHeads: delta ? 4 : 0,
    deltaHeadDim: delta ? 64 : 0,
    convKernel: delta ? 4 : 0,
    tiledValueHeads: architecture === 'hybrid',
    experts: 8,
    expertsPerToken: 3,
    expertWidth: width,
    sharedWidth: delta ? width : 0,
    maxRows: 24,
    maxSequences: 2,
    contextLength,
    threads: 1,
    precision: 'exact',
    kvType,
  };
}

type Spec = readonly [
  name: string,
  layer: number,
  cols: number,
  rows: number,
  kind: 'matrix' | 'near 1' | 'float',
];

function specsOf(config: BackendConfig, architecture: Architecture): Spec[] {
  const { hidden, vocabulary, layers, experts, sharedWidth } = config;
  const specs: Spec[] = [
    ['token_embd.weight', -1, hidden, vocabulary, 'matrix'],
    ['output_norm.weight', -1, hidden, 1, 'near 1'],
  ];
  // Without one, the embedding is the head.
  if (architecture !== 'plain') specs.push(['output.weight', -1, hidden, vocabulary, 'matrix']);
  for (let layer = 0; layer < layers; layer++) {
    specs.push(['attn_norm.weight', layer, hidden, 1, 'near 1']);
    specs.push(['post_attention_norm.weight', layer, hidden, 1, 'near 1']);
    specs.push(
      ...(config.attentionLayers[layer] === 1
        ? attention(config, layer)
        : delta(config, architecture, layer)),
    );
    specs.push(['ffn_gate_inp.weight', layer, hidden, experts, 'float']);
    if (sharedWidth === 0) continue;
    specs.push(['ffn_gate_shexp.weight', layer, hidden, sharedWidth, 'matrix']);
    specs.push(['ffn_up_shexp.weight', layer, hidden, sharedWidth, 'matrix']);
    specs.push(['ffn_down_shexp.weight', layer, sharedWidth, hidden, 'matrix']);
    specs.push(['ffn_gate_inp_shexp.weight', layer, hidden, 1, 'float']);
  }
  return specs;
}

function attention(config: BackendConfig, layer: number): Spec[] {
  const { hidden, heads, kvHeads, headDim, gatedAttention } = config;
  return [
    ['attn_q.weight', layer, hidden, heads * headDim * (gatedAttention ? 2 : 1), 'matrix'],
    ['attn_k.weight', layer, hidden, kvHeads * headDim, 'matrix'],
    ['attn_v.weight', layer, hidden, kvHeads * headDim, 'matrix'],
    ['attn_output.weight', layer, heads * headDim, hidden, 'matrix'],
    ['attn_q_norm.weight', layer, headDim, 1, 'near 1'],
    ['attn_k_norm.weight', layer, headDim, 1, 'near 1'],
  ];
}

function delta(config: BackendConfig, architecture: Architecture, layer: number): Spec[] {
  const { hidden, deltaKeyHeads, deltaValueHeads, deltaHeadDim, convKernel } = config;
  const values = deltaValueHeads * deltaHeadDim;
  const channels = 2 * deltaKeyHeads * deltaHeadDim + values;
  const gates: Spec[] =
    architecture === 'grouped'
      ? [['ssm_ba.weight', layer, hidden, 2 * deltaValueHeads, 'matrix']]
      : [
          ['ssm_beta.weight', layer, hidden, deltaValueHeads, 'matrix'],
          ['ssm_alpha.weight', layer, hidden, deltaValueHeads, 'float'],
        ];
  return [
    ['attn_qkv.weight', layer, hidden, channels, 'matrix'],
    ['attn_gate.weight', layer, hidden, values, 'matrix'],
    ...gates,
    ['ssm_conv1d.weight', layer, convKernel, channels, 'float'],
    ['ssm_a', layer, deltaValueHeads, 1, 'float'],
    ['ssm_dt.bias', layer, deltaValueHeads, 1, 'float'],
    ['ssm_norm.weight', layer, deltaHeadDim, 1, 'near 1'],
    ['ssm_out.weight', layer, values, hidden, 'matrix'],
  ];
}

/** Fills the memory of a tensor, and says where in it the tensor's parts are. */
function fill(cpu: CpuAddon, random: Random, spec: Spec, type: number, bytes: Uint8Array): Parts {
  const [name, , cols, rows, kind] = spec;
  if (kind !== 'matrix') {
    const values = new Float32Array(cols * rows);
    for (let at = 0; at < values.length; at++) values[at] = randomValue(name, kind, random);
    bytes.set(new Uint8Array(values.buffer));
    return [bytes];
  }
  fillRandom(cpu, type, random, 1 / Math.sqrt(cols), bytes);
  const sides = sidesOf(type, cols * rows);
  if (sides === undefined) return [bytes];
  return [bytes.subarray(0, sides[0]), bytes.subarray(...sides), bytes.subarray(sides[1])];
}

/** Where scales and biases begin behind the codes of so many values. */
function sidesOf(typeId: number, values: number): RandomModel['sides'] {
  const type = tensorType(typeId);
  if (type.affine === undefined) return undefined;
  const { codes, side } = affineBytes(type, values);
  return [codes, codes + side];
}

function randomValue(name: string, kind: Spec[4], random: Random): number {
  if (kind === 'near 1') return 1 + signed(random) / 4;
  // A decay is negative.
  return name === 'ssm_a' ? -0.6 + signed(random) / 2 : signed(random);
}

/** Bytes before an affine matrix, others at each. */
const skewOf = (type: number, index: number): number =>
  tensorType(type).affine === undefined ? 0 : 1 + (index % AFFINE_SKEW_BYTES);

export function randomModel(cpu: CpuAddon, options: RandomModelOptions): RandomModel {
  const config = configOf(options);
  const random = randomSource(1 + options.type);
  const specs = specsOf(config, options.architecture);
  const places = specs.map(([, , cols, rows, kind], index) => {
    const type = kind === 'matrix' ? options.type : F32;
    return { type, skew: skewOf(type, index), size: rows * rowBytes(tensorType(type), cols) };
  });
  const memory = allocateShared(
    places.reduce((sum, { skew, size }) => sum + roundUp(skew + size, ALIGN_BYTES), 0),
  );
  let begin = 0;
  const tensors = specs.map((spec, index) => {
    const { type, skew, size } = places[index]!;
    const bytes = memory.subarray(begin + skew, begin + skew + size);
    begin += roundUp(skew + size, ALIGN_BYTES);
    const [name, layer, cols, rows] = spec;
    return { name, layer, type, cols, rows, parts: fill(cpu, random, spec, type, bytes) };
  });
  return { config, type: options.type, tensors, ...randomExperts(cpu, random, config, options.type) };
}

type Experts = Pick<RandomModel, 'slab' | 'matrixBytes' | 'sides'>;

function randomExperts(cpu: CpuAddon, random: Random, config: BackendConfig, type: number): Experts {
  const { hidden, expertWidth, layers, experts } = config;
  const size = hidden * rowBytes(tensorType(type), expertWidth);
  const sides = sidesOf(type, hidden * expertWidth);
  const count = layers * experts * 3;
  // An odd distance: affine matrices begin at every remainder.
  const matrixBytes = sides === undefined ? size : size + 1;
  const slab = allocateShared(count * matrixBytes);
  const length = 1 / Math.sqrt(hidden);
  if (sides === undefined) fillRandom(cpu, type, random, length, slab);
  else
    for (let at = 0; at < slab.length; at += matrixBytes)
      fillRandom(cpu, type, random, length, slab.subarray(at, at + size));
  return { slab, matrixBytes, sides };
}

export interface RunResult {
  /** (rows, vocabulary) of all steps */
  readonly logits: Float32Array;
  /** (layers, rows, top-k) of each step in turn */
  readonly routes: number[];
}

/** A sequence as it was saved, and the tokens that it holds. */
export interface SavedRun {
  readonly bytes: Uint8Array;
  readonly positions: number;
}

const SEQUENCE = 1;

/** A backend with the model in it, and the memory that it is bound to. */
class ModelRun {
  readonly backend: Backend;
  private readonly model: RandomModel;
  private readonly table: Int32Array;
  private readonly ids: Int32Array;
  private readonly slots: Float32Array;
  private readonly random = randomSource(7);
  private position = 0;

  constructor(addon: BackendAddon, model: RandomModel) {
    const { config } = model;
    this.model = model;
    this.table = new Int32Array(config.maxRows * ROW_WORDS);
    this.ids = new Int32Array(config.maxRows * config.expertsPerToken);
    this.slots = new Float32Array(config.maxRows * config.vocabulary);
    this.backend = new addon.Backend(config);
    for (const { name, layer, type, cols, rows, parts } of model.tensors)
      this.backend.setTensor(name, layer, type, cols, rows, ...parts);
    for (let layer = 0; layer < config.layers; layer++)
      this.backend.setExpertTypes(layer, model.type, model.type, model.type);
    this.backend.seal();
    this.backend.bindSlab([model.slab]);
    this.backend.bindRows(this.table);
    this.backend.bindRoutes(this.ids, new Float32Array(this.ids.length));
    this.backend.bindLogits(this.slots);
  }

  restore({ bytes, positions }: SavedRun): void {
    this.backend.restoreSequence(SEQUENCE, bytes);
    this.position = positions;
  }

  /** The logits of the next random tokens; notes what the router chose. */
  step(rows: number, routes: number[]): Float32Array {
    const { backend, model, table } = this;
    const { config } = model;
    for (let row = 0; row < rows; row++) {
      table[row * ROW_WORDS + ROW_TOKEN] = this.random() % config.vocabulary;
      table[row * ROW_WORDS + ROW_POSITION] = this.position + row;
      table[row * ROW_WORDS + ROW_SEQUENCE] = SEQUENCE;
    }
    backend.begin(rows);
    for (let layer = 0; layer < config.layers; layer++) {
      backend.mix(layer);
      const chosen = this.ids.subarray(0, rows * config.expertsPerToken);
      routes.push(...chosen);
      backend.shared(layer);
      for (const expert of new Set(chosen)) {
        const gate = (layer * config.experts + expert) * 3 * model.matrixBytes;
        const [up, down] = [gate + model.matrixBytes, gate + 2 * model.matrixBytes];
        if (model.sides === undefined) backend.expert(layer, expert, 0, gate, up, down);
        else {
          const [s, b] = model.sides;
          backend.expert(
            layer,
            expert,
            0,
            gate,
            up,
            down,
            gate + s,
            gate + b,
            up + s,
            up + b,
            down + s,
            down + b,
          );
        }
      }
      backend.combine(layer);
    }
    this.position += rows;
    backend.logits(0, rows, 0);
    return this.slots.subarray(0, rows * config.vocabulary);
  }
}

/** Takes a sequence, new or saved, through the model in steps of these many rows. */
export function runModel(
  addon: BackendAddon,
  model: RandomModel,
  steps: readonly number[],
  from?: SavedRun,
): RunResult {
  const run = new ModelRun(addon, model);
  try {
    if (from !== undefined) run.restore(from);
    const logits: number[] = [];
    const routes: number[] = [];
    for (const rows of steps) logits.push(...run.step(rows, routes));
    return { logits: Float32Array.from(logits), routes };
  } finally {
    run.backend.close();
  }
}

/** The sequence after so many random tokens. */
export function stateAfter(addon: BackendAddon, model: RandomModel, positions: number): SavedRun {
  const run = new ModelRun(addon, model);
  try {
    for (let left = positions; left > 0; left -= model.config.maxRows)
      run.step(Math.min(left, model.config.maxRows), []);
    const bytes = new Uint8Array(run.backend.sequenceBytes(positions));
    run.backend.saveSequence(SEQUENCE, bytes);
    return { bytes, positions };
  } finally {
    run.backend.close();
  }
}
