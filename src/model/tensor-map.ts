/**
 * Which tensor is what: the dense ones that stay in memory, and for every layer where its experts lie.
 *
 * This is the one place that knows tensor names and their shapes (GGUF's names, as llama.cpp gives them; see
 * model-source.ts). A model
 * that passes has every tensor its architecture needs, in the right shape and a type that can be computed with; the
 * first that is not is named. Tensors that nothing needs are listed, not loaded: MTP layers, vision, rope tables.
 */
import { MoestreamError } from '../errors.ts';
import { type GgmlType, rowBytes } from './ggml-types.ts';
import type { Hyperparameters } from './hyperparameters.ts';
import type { ModelSource, SourceTensor } from './model-source.ts';
import type { Place, StridedPlace, VectorChange } from './places.ts';

/** A matrix that stays in memory: `rows` rows of `cols` contiguous values. One-dimensional tensors have one row. */
export interface DenseTensor extends Place {
  /** The name without `blk.N.`. */
  readonly name: string;
  /** -1 outside the layers. */
  readonly layer: number;
  readonly type: GgmlType;
  readonly cols: number;
  readonly rows: number;
  readonly scales?: Place;
  readonly biases?: Place;
  readonly change?: VectorChange;
}

/** One matrix of all experts of a layer: expert e has `byteLength` bytes at `offsetBytes + e * strideBytes`. */
export interface ExpertMatrix extends StridedPlace {
  readonly type: GgmlType;
  readonly rows: number;
  readonly cols: number;
  readonly scales?: StridedPlace;
  readonly biases?: StridedPlace;
}

export interface ExpertTensors {
  readonly gate: ExpertMatrix;
  readonly up: ExpertMatrix;
  readonly down: ExpertMatrix;
}

export interface TensorMap {
  readonly dense: readonly DenseTensor[];
  /** (layers) */
  readonly experts: readonly ExpertTensors[];
  /** The full names of the tensors that hold the experts; none when they are packed. */
  readonly expertTensors: readonly string[];
  /** Tensors of the file that nothing here needs. */
  readonly unused: readonly string[];
}

class Mapper {
  readonly dense: DenseTensor[] = [];
  readonly experts: ExpertTensors[] = [];
  readonly expertTensors: string[] = [];
  private readonly source: ModelSource;
  private readonly model: Hyperparameters;
  private readonly packed: readonly ExpertTensors[] | undefined;
  private readonly used = new Set<string>();

  constructor(source: ModelSource, model: Hyperparameters, packed: readonly ExpertTensors[] | undefined) {
    this.source = source;
    this.model = model;
    this.packed = packed;
  }

  map(): TensorMap {
    const { hidden, vocabulary, layers } = this.model;
    this.matrix(-1, 'token_embd.weight', hidden, vocabulary);
    this.vector(-1, 'output_norm.weight', hidden);
    // Without a head of its own the model multiplies with its embedding.
    if (this.has(-1, 'output.weight')) this.matrix(-1, 'output.weight', hidden, vocabulary);
    for (let layer = 0; layer < layers; layer++) this.mapLayer(layer);
    const unused = [...this.source.tensors.keys()].filter((name) => !this.used.has(name));
    this.refuseBiases(unused);
    return { dense: this.dense, experts: this.experts, expertTensors: this.expertTensors, unused };
  }

  /** A bias that is left out gives other numbers; no model of this family has one. */
  private refuseBiases(unused: readonly string[]): void {
    const pattern = /^blk\.(\d+)\.(.+\.bias)$/;
    for (const name of unused) {
      const found = pattern.exec(name);
      if (found === null || Number(found[1]) >= this.model.layers) continue;
      throw this.unsupported(Number(found[1]), found[2]!, 'is a bias, which is not supported');
    }
  }

  private mapLayer(layer: number): void {
    const { hidden, experts, sharedWidth, architecture, attentionLayers } = this.model;
    this.vector(layer, 'attn_norm.weight', hidden);
    if (attentionLayers[layer] === 1) this.mapAttention(layer);
    else this.mapDelta(layer);
    this.vector(
      layer,
      architecture === 'qwen3moe' ? 'ffn_norm.weight' : 'post_attention_norm.weight',
      hidden,
    );
    this.matrix(layer, 'ffn_gate_inp.weight', hidden, experts);
    if (sharedWidth > 0) {
      this.vector(layer, 'ffn_gate_inp_shexp.weight', hidden);
      this.matrix(layer, 'ffn_gate_shexp.weight', hidden, sharedWidth);
      this.matrix(layer, 'ffn_up_shexp.weight', hidden, sharedWidth);
      this.matrix(layer, 'ffn_down_shexp.weight', sharedWidth, hidden);
    }
    this.experts.push(this.packed?.[layer] ?? this.mapExperts(layer));
  }

  private mapAttention(layer: number): void {
    const { hidden, heads, kvHeads, headDim, gatedAttention } = this.model;
    const queryRows = heads * headDim * (gatedAttention ? 2 : 1);
    const kvRows = kvHeads * headDim;
    if (this.has(layer, 'attn_qkv.weight')) this.sliceQkv(layer, queryRows, kvRows);
    else {
      this.matrix(layer, 'attn_q.weight', hidden, queryRows);
      this.matrix(layer, 'attn_k.weight', hidden, kvRows);
      this.matrix(layer, 'attn_v.weight', hidden, kvRows);
    }
    this.vector(layer, 'attn_q_norm.weight', headDim);
    this.vector(layer, 'attn_k_norm.weight', headDim);
    this.matrix(layer, 'attn_output.weight', heads * headDim, hidden);
  }

  /** Newer converters put q, k and v rows one behind the other in one tensor. */
  private sliceQkv(layer: number, queryRows: number, kvRows: number): void {
    const { hidden } = this.model;
    const tensor = this.take(layer, 'attn_qkv.weight', [hidden, queryRows + 2 * kvRows]);
    if (tensor.scales !== undefined) {
      throw this.unsupported(layer, 'attn_qkv.weight', `joins q, k and v in type ${tensor.type.name}`);
    }
    const stride = rowBytes(tensor.type, hidden);
    let firstRow = 0;
    for (const [name, rows] of [
      ['attn_q.weight', queryRows],
      ['attn_k.weight', kvRows],
      ['attn_v.weight', kvRows],
    ] as const) {
      this.dense.push({
        name,
        layer,
        type: tensor.type,
        cols: hidden,
        rows,
        file: tensor.file,
        offsetBytes: tensor.offsetBytes + firstRow * stride,
        byteLength: rows * stride,
      });
      firstRow += rows;
    }
  }

  private mapDelta(layer: number): void {
    const { hidden, deltaKeyHeads, deltaValueHeads, deltaHeadDim, convKernel } = this.model;
    const valueRows = deltaValueHeads * deltaHeadDim;
    const channels = 2 * deltaKeyHeads * deltaHeadDim + valueRows;
    if (this.has(layer, 'ssm_in.weight')) {
      throw this.unsupported(
        layer,
        'ssm_in.weight',
        'is of an early conversion that joined its rows otherwise',
      );
    }
    this.matrix(layer, 'attn_qkv.weight', hidden, channels);
    this.matrix(layer, 'attn_gate.weight', hidden, valueRows);
    if (this.has(layer, 'ssm_ba.weight')) this.matrix(layer, 'ssm_ba.weight', hidden, 2 * deltaValueHeads);
    else {
      this.matrix(layer, 'ssm_beta.weight', hidden, deltaValueHeads);
      this.matrix(layer, 'ssm_alpha.weight', hidden, deltaValueHeads);
    }
    this.matrix(layer, 'ssm_conv1d.weight', convKernel, channels);
    this.vector(layer, 'ssm_a', deltaValueHeads);
    this.vector(layer, 'ssm_dt.bias', deltaValueHeads);
    this.vector(layer, 'ssm_norm.weight', deltaHeadDim);
    this.matrix(layer, 'ssm_out.weight', valueRows, hidden);
  }

  private mapExperts(layer: number): ExpertTensors {
    const { hidden, expertWidth, experts } = this.model;
    const down = this.expertMatrix(layer, 'ffn_down_exps.weight', [expertWidth, hidden, experts]);
    if (!this.has(layer, 'ffn_gate_up_exps.weight')) {
      const shape = [hidden, expertWidth, experts];
      return {
        gate: this.expertMatrix(layer, 'ffn_gate_exps.weight', shape),
        up: this.expertMatrix(layer, 'ffn_up_exps.weight', shape),
        down,
      };
    }
    // Gate rows first, then up rows: two halves of one tensor.
    const both = this.expertMatrix(layer, 'ffn_gate_up_exps.weight', [hidden, 2 * expertWidth, experts]);
    return { gate: halfOf(both, 0), up: halfOf(both, 1), down };
  }

  private expertMatrix(layer: number, name: string, shape: readonly number[]): ExpertMatrix {
    const tensor = this.take(layer, name, shape);
    this.expertTensors.push(fullName(layer, name));
    const [cols, rows] = shape as [number, number];
    const strided = ({ file, offsetBytes, byteLength }: Place): StridedPlace => {
      const bytes = byteLength / this.model.experts;
      return { file, offsetBytes, strideBytes: bytes, byteLength: bytes };
    };
    return {
      type: tensor.type,
      rows,
      cols,
      ...strided(tensor),
      ...(tensor.scales && { scales: strided(tensor.scales) }),
      ...(tensor.biases && { biases: strided(tensor.biases) }),
    };
  }

  private matrix(layer: number, name: string, cols: number, rows: number): void {
    this.dense.push(denseTensor(layer, name, cols, rows, this.take(layer, name, [cols, rows])));
  }

  private vector(layer: number, name: string, length: number): void {
    this.dense.push(denseTensor(layer, name, length, 1, this.take(layer, name, [length])));
  }

  private has(layer: number, name: string): boolean {
    return this.source.tensors.has(fullName(layer, name));
  }

  /** The tensor of this name and shape. Trailing dimensions of 1 do not count. */
  private take(layer: number, name: string, shape: readonly number[]): SourceTensor {
    const full = fullName(layer, name);
    const tensor = this.source.tensors.get(full);
    const path = this.source.files[tensor?.file ?? 0]!.path;
    if (tensor === undefined)
      throw new MoestreamError('MODEL_INVALID', `${path}: tensor "${this.ownName(full)}" is missing`);
    const actual = [...tensor.shape];
    while (actual.length > shape.length && actual.at(-1) === 1) actual.pop();
    if (actual.length !== shape.length || actual.some((size, axis) => size !== shape[axis])) {
      throw new MoestreamError(
        'MODEL_INVALID',
        `${path}: tensor "${this.ownName(full)}" has shape ${tensor.shape.join(' x ')}, expected ${shape.join(' x ')}`,
      );
    }
    if (!tensor.type.supported) {
      throw this.unsupported(layer, name, `is of type ${tensor.type.name}, which cannot be computed with`);
    }
    this.used.add(full);
    return tensor;
  }

  private unsupported(layer: number, name: string, problem: string): MoestreamError {
    const path = this.source.files[0]!.path;
    const own = this.ownName(fullName(layer, name));
    return new MoestreamError('MODEL_UNSUPPORTED', `${path}: tensor "${own}" ${problem}`);
  }

  private ownName(name: string): string {
    return this.source.ownName?.(name) ?? name;
  }
}

function denseTensor(
  layer: number,
  name: string,
  cols: number,
  rows: number,
  { type, file, offsetBytes, byteLength, scales, biases, change }: SourceTensor,
): DenseTensor {
  const sides = scales && biases ? { scales, biases } : {};
  return {
    name,
    layer,
    type,
    cols,
    rows,
    file,
    offsetBytes,
    byteLength,
    ...sides,
    ...(change && { change }),
  };
}

/** The first or the second half of the rows of every expert. */
function halfOf(both: ExpertMatrix, half: 0 | 1): ExpertMatrix {
  const cut = ({ file, offsetBytes, strideBytes, byteLength }: StridedPlace): StridedPlace => {
    const bytes = byteLength / 2;
    return { file, offsetBytes: offsetBytes + half * bytes, strideBytes, byteLength: bytes };
  };
  return {
    type: both.type,
    rows: both.rows / 2,
    cols: both.cols,
    ...cut(both),
    ...(both.scales && { scales: cut(both.scales) }),
    ...(both.biases && { biases: cut(both.biases) }),
  };
}

function fullName(layer: number, name: string): string {
  return layer < 0 ? name : `blk.${layer}.${name}`;
}

/**
 * Maps the tensors of a model; `packed` says where the experts are when they are not in the GGUF. Throws MODEL_INVALID or
 * MODEL_UNSUPPORTED naming the tensor.
 */
export function mapTensors(
  source: ModelSource,
  hyperparameters: Hyperparameters,
  packed?: readonly ExpertTensors[],
): TensorMap {
  return new Mapper(source, hyperparameters, packed).map();
}
