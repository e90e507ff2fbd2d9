/**
 * One model out of several files: routed experts, embedding or LM head from another checkpoint of the same model.
 *
 * Why: the parts stand different precision. The reference engine's best setting is MLX's dense weights with 3-bit GGUF
 * experts, an 8-bit embedding and a 6-bit head. Invariant: all sources have the same shape, number for number; what two of
 * them disagree on is named with both. Checkpoints keep DeltaNet's value heads in another order than GGUF does, and that
 * needs no bridge here: none of the three parts touches them, so the order is the base's.
 */
import { MoestreamError } from '../errors.ts';
import type { Hyperparameters } from './hyperparameters.ts';
import type { SourceFile } from './model-source.ts';
import type { Place } from './places.ts';
import type { DenseTensor, ExpertMatrix, ExpertTensors, TensorMap } from './tensor-map.ts';

/** An opened model, as far as mixing looks at it. */
export interface Ingredient {
  readonly files: readonly SourceFile[];
  readonly hyperparameters: Hyperparameters;
  readonly tensors: TensorMap;
}

/** Where parts come from that the base does not give. */
export interface Donors {
  readonly experts?: Ingredient | undefined;
  readonly embedding?: Ingredient | undefined;
  readonly lmHead?: Ingredient | undefined;
}

const EMBEDDING = 'token_embd.weight';
const HEAD = 'output.weight';

/** Compared as they are; floats as float32, which is what GGUF keeps. */
const SAME: readonly (keyof Hyperparameters)[] = [
  'architecture',
  'layers',
  'hidden',
  'vocabulary',
  'experts',
  'trainedExpertsPerToken',
  'expertWidth',
  'sharedWidth',
  'attentionLayers',
  'heads',
  'kvHeads',
  'headDim',
  'rotaryDims',
  'ropeTheta',
  'rmsEpsilon',
  'gatedAttention',
  'deltaKeyHeads',
  'deltaValueHeads',
  'deltaHeadDim',
  'convKernel',
];

function textOf(value: unknown): string {
  if (typeof value === 'number') return String(Math.fround(value));
  return value instanceof Uint8Array ? value.join('') : String(value);
}

/** Throws MODEL_INVALID naming both models and the first number that differs. */
function refuseOtherModel(base: Ingredient, donor: Ingredient): void {
  for (const name of SAME) {
    const [here, there] = [base, donor].map(({ hyperparameters }) => textOf(hyperparameters[name]));
    if (here === there) continue;
    throw new MoestreamError(
      'MODEL_INVALID',
      `${donor.files[0]!.path} has ${name} ${there}, ${base.files[0]!.path} has ${here}: not the same model`,
      { hint: 'Parts can be mixed only from checkpoints of one model.' },
    );
  }
}

/** The files that are in use, numbered anew. */
class FileTable {
  readonly files: SourceFile[] = [];
  private readonly numbers = new Map<string, number>();

  /** The same place, in terms of this table. */
  placed<P extends Place>(place: P, from: Ingredient): P {
    const file = from.files[place.file]!;
    let number = this.numbers.get(file.path);
    if (number === undefined) {
      number = this.files.push(file) - 1;
      this.numbers.set(file.path, number);
    }
    return { ...place, file: number };
  }

  /** A matrix with its scales and biases. */
  moved<T extends DenseTensor | ExpertMatrix>(tensor: T, from: Ingredient): T {
    const { scales, biases } = tensor;
    const sides =
      scales && biases ? { scales: this.placed(scales, from), biases: this.placed(biases, from) } : {};
    return { ...this.placed(tensor, from), ...sides };
  }
}

function denseNamed(from: Ingredient, name: string): DenseTensor | undefined {
  return from.tensors.dense.find((tensor) => tensor.layer === -1 && tensor.name === name);
}

/** The files and tensors of `base` with what the donors give. */
export function mixed(base: Ingredient, donors: Donors): { files: SourceFile[]; tensors: TensorMap } {
  for (const donor of Object.values(donors)) if (donor !== undefined) refuseOtherModel(base, donor);
  const table = new FileTable();
  const dense: DenseTensor[] = [];
  for (const tensor of base.tensors.dense) {
    const isReplaced =
      tensor.layer === -1 &&
      ((tensor.name === EMBEDDING && donors.embedding !== undefined) ||
        (tensor.name === HEAD && donors.lmHead !== undefined));
    if (!isReplaced) dense.push(table.moved(tensor, base));
  }
  if (donors.embedding !== undefined)
    dense.push(table.moved(denseNamed(donors.embedding, EMBEDDING)!, donors.embedding));
  // A model without a head of its own multiplies with its embedding: with its own, not with a borrowed one.
  const headFrom = donors.lmHead ?? (denseNamed(base, HEAD) === undefined ? base : undefined);
  if (headFrom !== undefined && (donors.lmHead !== undefined || donors.embedding !== undefined)) {
    const head = denseNamed(headFrom, HEAD) ?? denseNamed(headFrom, EMBEDDING)!;
    dense.push(table.moved({ ...head, name: HEAD }, headFrom));
  }
  const expertsFrom = donors.experts ?? base;
  const experts: ExpertTensors[] = expertsFrom.tensors.experts.map(({ gate, up, down }) => ({
    gate: table.moved(gate, expertsFrom),
    up: table.moved(up, expertsFrom),
    down: table.moved(down, expertsFrom),
  }));
  return { files: table.files, tensors: { ...base.tensors, dense, experts } };
}
