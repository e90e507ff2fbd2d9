/**
 * Random models small enough for a test, one per architecture, and a driver that takes the backend through its steps.
 *
 * Widths are chosen against convenience: 72 and 40 are no multiple of the 32 lanes of a dot product, and experts lie at
 * odd bytes of the slab.
 */
import {
  type Backend,
  type BackendAddon,
  type BackendConfig,
  loadCpu,
  ROW_WORDS,
} from '../../dist/native.js';
import type { ExpertMatrices, Model, Tensor } from './reference.js';

const F32 = 0;

export const ARCHITECTURES = ['qwen35moe', 'qwen3next', 'qwen3moe'] as const;
export type Architecture = (typeof ARCHITECTURES)[number];

/** Uniform in [-1, 1), the same sequence for the same seed. */
function randomSource(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 31 - 1;
  };
}

export function tinyConfig(architecture: Architecture, changes: Partial<BackendConfig> = {}): BackendConfig {
  const hybrid = architecture !== 'qwen3moe';
  return {
    layers: 4,
    hidden: 72,
    vocabulary: 61,
    rmsEpsilon: 1e-6,
    attentionLayers: Uint8Array.from([0, 1, 2, 3], (layer) => (hybrid && layer % 4 !== 3 ? 0 : 1)),
    heads: 4,
    kvHeads: 2,
    headDim: 24,
    rotaryDims: hybrid ? 8 : 24,
    ropeTheta: 1e4,
    gatedAttention: hybrid,
    deltaKeyHeads: hybrid ? 2 : 0,
    deltaValueHeads: hybrid ? 6 : 0,
    deltaHeadDim: hybrid ? 16 : 0,
    convKernel: hybrid ? 4 : 0,
    tiledValueHeads: architecture === 'qwen35moe',
    experts: 8,
    expertsPerToken: 3,
    expertWidth: 40,
    sharedWidth: hybrid ? 32 : 0,
    maxRows: 16,
    maxSequences: 2,
    contextLength: 64,
    threads: 1,
    precision: 'exact',
    kvType: 'f32',
    ...changes,
  };
}

/** The tensors that a file of this architecture would hold; qwen3moe's has no output.weight. */
export function tinyModel(architecture: Architecture, seed = 1, changes: Partial<BackendConfig> = {}): Model {
  const config = tinyConfig(architecture, changes);
  const random = randomSource(seed);
  const tensors: Tensor[] = [];
  const add = (name: string, layer: number, cols: number, rows: number, value: () => number): void => {
    tensors.push({ name, layer, cols, rows, values: Float32Array.from({ length: cols * rows }, value) });
  };
  const matrix = (name: string, layer: number, cols: number, rows: number): void =>
    add(name, layer, cols, rows, () => (random() * 2) / Math.sqrt(cols));
  const norm = (name: string, layer: number, cols: number): void =>
    add(name, layer, cols, 1, () => 1 + random() / 4);

  const { hidden, vocabulary } = config;
  add('token_embd.weight', -1, hidden, vocabulary, random);
  norm('output_norm.weight', -1, hidden);
  if (architecture !== 'qwen3moe') matrix('output.weight', -1, hidden, vocabulary);
  for (let layer = 0; layer < config.layers; layer++) {
    norm('attn_norm.weight', layer, hidden);
    norm(architecture === 'qwen3moe' ? 'ffn_norm.weight' : 'post_attention_norm.weight', layer, hidden);
    if (config.attentionLayers[layer] === 1) addAttention(config, layer, matrix, norm);
    else addDeltaNet(config, layer, architecture === 'qwen3next', matrix, norm, add, random);
    // Wide scores keep the choice of experts away from ties.
    add('ffn_gate_inp.weight', layer, hidden, config.experts, () => random());
    if (config.sharedWidth > 0) {
      matrix('ffn_gate_shexp.weight', layer, hidden, config.sharedWidth);
      matrix('ffn_up_shexp.weight', layer, hidden, config.sharedWidth);
      matrix('ffn_down_shexp.weight', layer, config.sharedWidth, hidden);
      matrix('ffn_gate_inp_shexp.weight', layer, hidden, 1);
    }
  }
  const experts = Array.from({ length: config.layers }, (): ExpertMatrices => {
    const values = (cols: number) =>
      Float32Array.from(
        { length: config.experts * config.expertWidth * hidden },
        () => (random() * 2) / Math.sqrt(cols),
      );
    return { gate: values(hidden), up: values(hidden), down: values(config.expertWidth) };
  });
  return { config, tensors, experts };
}

type AddMatrix = (name: string, layer: number, cols: number, rows: number) => void;
type AddNorm = (name: string, layer: number, cols: number) => void;
type AddTensor = (name: string, layer: number, cols: number, rows: number, value: () => number) => void;

function addAttention(config: BackendConfig, layer: number, matrix: AddMatrix, norm: AddNorm): void {
  const { hidden, heads, kvHeads, headDim } = config;
  matrix('attn_q.weight', layer, hidden, heads * headDim * (config.gatedAttention ? 2 : 1));
  matrix('attn_k.weight', layer, hidden, kvHeads * headDim);
  matrix('attn_v.weight', layer, hidden, kvHeads * headDim);
  matrix('attn_output.weight', layer, heads * headDim, hidden);
  norm('attn_q_norm.weight', layer, headDim);
  norm('attn_k_norm.weight', layer, headDim);
}

function addDeltaNet(
  config: BackendConfig,
  layer: number,
  joinedGates: boolean,
  matrix: AddMatrix,
  norm: AddNorm,
  add: AddTensor,
  random: () => number,
): void {
  const { hidden, deltaKeyHeads, deltaValueHeads, deltaHeadDim, convKernel } = config;
  const channels = (2 * deltaKeyHeads + deltaValueHeads) * deltaHeadDim;
  matrix('attn_qkv.weight', layer, hidden, channels);
  matrix('attn_gate.weight', layer, hidden, deltaValueHeads * deltaHeadDim);
  if (joinedGates) {
    matrix('ssm_ba.weight', layer, hidden, 2 * deltaValueHeads);
  } else {
    matrix('ssm_beta.weight', layer, hidden, deltaValueHeads);
    matrix('ssm_alpha.weight', layer, hidden, deltaValueHeads);
  }
  add('ssm_conv1d.weight', layer, convKernel, channels, random);
  add('ssm_a', layer, deltaValueHeads, 1, () => -0.6 + random() / 2);
  add('ssm_dt.bias', layer, deltaValueHeads, 1, random);
  norm('ssm_norm.weight', layer, deltaHeadDim);
  matrix('ssm_out.weight', layer, deltaValueHeads * deltaHeadDim, hidden);
}

export function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** One row of a step. */
export interface StepRow {
  readonly token: number;
  readonly position: number;
  readonly sequence: number;
}

/** A sealed backend with its bound memory, over shared buffers as in the engine. */
export class Driver {
  readonly backend: Backend;
  readonly config: BackendConfig;
  readonly rows: Int32Array;
  readonly ids: Int32Array;
  readonly weights: Float32Array;
  readonly logits: Float32Array;
  readonly #slab: Uint8Array;
  readonly #firstByte: number;

  /** A GPU reads float32 from multiples of 4 bytes only; the CPU from anywhere. */
  constructor(
    model: Model,
    changes: Partial<BackendConfig> = {},
    addon: BackendAddon = loadCpu(),
    firstByte = 3,
  ) {
    this.#firstByte = firstByte;
    this.config = { ...model.config, ...changes };
    const { layers, experts, expertsPerToken, expertWidth, hidden, maxRows, vocabulary } = this.config;
    this.backend = new addon.Backend(this.config);
    setTensors(this.backend, model);
    this.backend.seal();
    this.rows = new Int32Array(new SharedArrayBuffer(maxRows * ROW_WORDS * 4));
    this.ids = new Int32Array(new SharedArrayBuffer(maxRows * expertsPerToken * 4));
    this.weights = new Float32Array(new SharedArrayBuffer(maxRows * expertsPerToken * 4));
    this.logits = new Float32Array(new SharedArrayBuffer(maxRows * vocabulary * 4));
    this.#slab = new Uint8Array(
      new SharedArrayBuffer(layers * experts * 3 * expertWidth * hidden * 4 + firstByte),
    );
    model.experts.forEach((matrices, layer) => {
      for (let expert = 0; expert < experts; expert++) {
        [matrices.gate, matrices.up, matrices.down].forEach((matrix, which) => {
          const size = this.#matrixBytes();
          this.#slab.set(
            bytesOf(matrix).subarray(expert * size, (expert + 1) * size),
            this.#at(layer, expert, which),
          );
        });
      }
    });
    this.backend.bindRows(this.rows);
    this.backend.bindRoutes(this.ids, this.weights);
    this.backend.bindSlab([new Uint8Array(0), this.#slab]);
    this.backend.bindLogits(this.logits);
  }

  #matrixBytes(): number {
    return this.config.expertWidth * this.config.hidden * 4;
  }

  #at(layer: number, expert: number, which: number): number {
    return this.#firstByte + ((layer * this.config.experts + expert) * 3 + which) * this.#matrixBytes();
  }

  begin(rows: readonly StepRow[]): void {
    for (const [r, row] of rows.entries()) {
      this.rows.set([row.token, row.position, row.sequence, 0], r * ROW_WORDS);
    }
    this.backend.begin(rows.length);
  }

  expert(layer: number, expert: number): void {
    const [gate, up, down] = [0, 1, 2].map((which) => this.#at(layer, expert, which));
    this.backend.expert(layer, expert, 1, gate!, up!, down!);
  }

  /** The experts that the rows of the current step chose, each once. */
  chosen(rowCount: number): number[] {
    return [...new Set(this.ids.subarray(0, rowCount * this.config.expertsPerToken))];
  }

  /** One step; experts run in the order that `order` gives them. Returns a copy of its logits, row after row. */
  step(
    rows: readonly StepRow[],
    order: (experts: number[]) => number[] = (experts) => experts,
  ): Float32Array {
    this.begin(rows);
    for (let layer = 0; layer < this.config.layers; layer++) {
      this.backend.mix(layer);
      this.backend.shared(layer);
      for (const expert of order(this.chosen(rows.length))) this.expert(layer, expert);
      this.backend.combine(layer);
    }
    this.backend.logits(0, rows.length, 0);
    return this.logits.slice(0, rows.length * this.config.vocabulary);
  }

  /** A whole sequence from empty, in chunks of these sizes (the last one repeats). */
  sequence(ids: readonly number[], chunks: readonly number[], sequence = 0): Float32Array {
    this.backend.resetSequence(sequence);
    const logits = new Float32Array(ids.length * this.config.vocabulary);
    let position = 0;
    for (let i = 0; position < ids.length; i++) {
      const size = chunks[Math.min(i, chunks.length - 1)]!;
      const first = position;
      const rows = ids
        .slice(first, first + size)
        .map((token, r) => ({ token, position: first + r, sequence }));
      logits.set(this.step(rows), first * this.config.vocabulary);
      position += rows.length;
    }
    return logits;
  }
}

export function setTensors(
  backend: Backend,
  model: Model,
  skip: (tensor: Tensor) => boolean = () => false,
): void {
  for (const tensor of model.tensors) {
    if (skip(tensor)) continue;
    backend.setTensor(tensor.name, tensor.layer, F32, tensor.cols, tensor.rows, bytesOf(tensor.values));
  }
  for (let layer = 0; layer < model.config.layers; layer++) backend.setExpertTypes(layer, F32, F32, F32);
}

export function someIds(count: number, vocabulary: number, seed: number): number[] {
  const random = randomSource(seed);
  return Array.from({ length: count }, () => Math.floor(((random() + 1) / 2) * vocabulary));
}
