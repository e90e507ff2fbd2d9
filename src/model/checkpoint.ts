/**
 * Checkpoint folders: config.json, tokenizer.json and safetensors files, as a ModelSource.
 *
 * Opens what MLX publishes (affine codes of 2 to 8 bits with scales and biases, experts stacked) and what Hugging Face
 * publishes of the same architecture (bfloat16 or float32). Nothing is converted: tensors stay where they are, get GGUF's
 * names, and shapes turned around. Invariant: three tensors that make up one quantised matrix agree with each other and
 * with config.json, or the module is named and refused.
 */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { affineBytes, affineType } from './affine-types.ts';
import { CheckpointConfig, CONFIG_NAME } from './checkpoint-config.ts';
import { CONVOLUTION, changeOf, ggufName, likelyName, SINGLE_EXPERT } from './checkpoint-names.ts';
import { type GgmlType, ggmlTypeNamed } from './ggml-types.ts';
import { quoted } from './header-reader.ts';
import type { ModelSource, SourceTensor } from './model-source.ts';
import type { Place } from './places.ts';
import { readSafetensors, type SafetensorsFile, type SafetensorsTensor } from './safetensors.ts';
import { isObject, memberOf } from './strict-json.ts';
import { readJsonFile } from './text-file.ts';
import { readTokenizerJson } from './tokenizer-json.ts';
import { ValueMetadata } from './value-metadata.ts';

export const INDEX_NAME = 'model.safetensors.index.json';
export const SINGLE_NAME = 'model.safetensors';
const SUFFIX = '.safetensors';
const SHARDS_MAX = 4096;
const SHARD_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$/;

/** A tensor as its file has it. */
export interface StoredTensor extends SafetensorsTensor {
  readonly file: number;
}

export interface Checkpoint extends ModelSource {
  readonly folder: string;
  /** In the order of files and bytes. */
  readonly stored: readonly StoredTensor[];
  /** What of `stored` a tensor of the model is made of, by GGUF's names: its own name, or those of three. */
  readonly madeOf: ReadonlyMap<string, readonly string[]>;
}

/** Which files to open of a checkpoint. */
export interface CheckpointPath {
  readonly folder: string;
  /** One file by itself instead of all. */
  readonly file?: string;
}

/** The checkpoint that `path` names: its folder, or its configuration, its index or any of its shards. */
export function checkpointPath(path: string): CheckpointPath | undefined {
  const name = basename(path);
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
  if (isFolder) return existsSync(join(path, CONFIG_NAME)) ? { folder: path } : undefined;
  if (name === CONFIG_NAME || name === INDEX_NAME) return { folder: dirname(path) };
  if (!name.endsWith(SUFFIX)) return undefined;
  const folder = dirname(path);
  const isPart = readIndex(folder)?.shards.includes(name) === true;
  return isPart ? { folder } : { folder, file: name };
}

/** Opens a checkpoint. Without `weights` only its words are looked at, which is all that tokenizing needs. */
export function readCheckpoint({ folder, file }: CheckpointPath, weights = true): Checkpoint {
  const config = new CheckpointConfig(folder);
  const index = file === undefined && weights ? readIndex(folder) : undefined;
  const names = weights ? (index?.shards ?? [file ?? onlyFile(folder)]) : [];
  const shards = names.map((name, number) => readShard(folder, name, number, names.length));
  index?.check(shards);
  const tensors = new Tensors(config, shards);
  const metadata = new ValueMetadata(
    config.path,
    config.values(folder),
    (key) => config.fieldOf(key),
    () => readTokenizerJson(folder, config.endIds(folder)),
  );
  const configFile = { path: config.path, sizeBytes: statSync(config.path).size };
  return {
    folder,
    files: weights ? shards : [configFile],
    metadata,
    tensors: tensors.named,
    groupedValueHeads: true,
    stored: tensors.stored,
    madeOf: tensors.madeOf,
    ownName: (name) => tensors.madeOf.get(name)?.[0] ?? likelyName(name),
  };
}

function invalid(path: string, problem: string, hint?: string): MoestreamError {
  return new MoestreamError('MODEL_INVALID', `${path}: ${problem}`, hint === undefined ? {} : { hint });
}

class ShardIndex {
  /** In the order of their names. */
  readonly shards: readonly string[];
  private readonly path: string;
  private readonly map: readonly (readonly [tensor: string, shard: string])[];

  constructor(path: string, map: readonly (readonly [string, string])[]) {
    this.path = path;
    this.map = map;
    this.shards = [...new Set(map.map(([, shard]) => shard))].sort();
  }

  /** Every tensor must be where the index says. */
  check(shards: readonly SafetensorsFile[]): void {
    const names = new Map(
      shards.map((shard) => [basename(shard.path), new Set(shard.tensors.map(({ name }) => name))]),
    );
    for (const [tensor, shard] of this.map) {
      if (names.get(shard)?.has(tensor) === true) continue;
      throw invalid(this.path, `tensor ${quoted(tensor)} is not in ${shard}, where the index has it`);
    }
  }
}

function readIndex(folder: string): ShardIndex | undefined {
  const path = join(folder, INDEX_NAME);
  const root = readJsonFile(path);
  if (root === undefined) return undefined;
  const map = memberOf(root, 'weight_map');
  if (!isObject(map)) throw invalid(path, 'weight_map is not an object');
  const entries = Object.entries(map).map(([tensor, shard]) => {
    if (typeof shard === 'string' && SHARD_NAME.test(shard) && shard.endsWith(SUFFIX))
      return [tensor, shard] as const;
    throw invalid(path, `weight_map sends ${quoted(tensor)} to ${quoted(String(shard))}, no plain file name`);
  });
  const index = new ShardIndex(path, entries);
  const { length } = index.shards;
  if (length < 1 || length > SHARDS_MAX) throw invalid(path, `weight_map names ${length} files`);
  return index;
}

/** Without an index there is one file. */
function onlyFile(folder: string): string {
  if (existsSync(join(folder, SINGLE_NAME))) return SINGLE_NAME;
  const names = readdirSync(folder).filter((name) => name.endsWith(SUFFIX));
  if (names.length === 1) return names[0]!;
  const hint = `Fetch ${names.length === 0 ? 'the weights' : INDEX_NAME} from where the model came from.`;
  throw new MoestreamError(
    'MODEL_NOT_FOUND',
    names.length === 0
      ? `${folder}: a checkpoint without ${SUFFIX} files`
      : `${folder}: ${names.length} ${SUFFIX} files and no ${INDEX_NAME}`,
    { hint },
  );
}

function readShard(folder: string, name: string, number: number, count: number): SafetensorsFile {
  const path = join(folder, name);
  if (count > 1 && !existsSync(path)) {
    throw new MoestreamError('MODEL_NOT_FOUND', `${path}: part ${number + 1} of ${count} is missing`, {
      hint: 'All files of a checkpoint must lie in one folder.',
    });
  }
  return readSafetensors(path);
}

const SIDES = ['scales', 'biases'] as const;

/** From the tensors of the files to those of the model. */
class Tensors {
  readonly stored: readonly StoredTensor[];
  readonly named = new Map<string, SourceTensor>();
  readonly madeOf = new Map<string, readonly string[]>();
  private readonly config: CheckpointConfig;
  private readonly shards: readonly SafetensorsFile[];
  private readonly byName = new Map<string, StoredTensor>();
  /** Whether norms lack their 1; undefined until a convolution has told. */
  private readonly shifted: boolean;

  constructor(config: CheckpointConfig, shards: readonly SafetensorsFile[]) {
    this.config = config;
    this.shards = shards;
    this.stored = shards.flatMap((shard, file) => shard.tensors.map((tensor) => ({ ...tensor, file })));
    for (const tensor of this.stored) {
      if (this.byName.has(tensor.name)) throw this.invalid(tensor, 'occurs in two files');
      this.byName.set(tensor.name, tensor);
    }
    this.shifted = this.isShifted();
    for (const tensor of this.stored) this.add(tensor);
  }

  private invalid(tensor: StoredTensor, problem: string): MoestreamError {
    return invalid(this.shards[tensor.file]!.path, `tensor ${quoted(tensor.name)} ${problem}`);
  }

  private unsupported(tensor: StoredTensor, problem: string): MoestreamError {
    return new MoestreamError('MODEL_UNSUPPORTED', this.invalid(tensor, problem).message);
  }

  /** All convolutions must be of one kind. */
  private isShifted(): boolean {
    let first: { readonly tensor: StoredTensor; readonly raw: boolean } | undefined;
    for (const tensor of this.stored) {
      if (!CONVOLUTION.test(ggufName(tensor.name) ?? '')) continue;
      const [, middle, last] = tensor.shape;
      const raw = tensor.shape.length === 3 && middle === 1;
      const converted = tensor.shape.length === 3 && last === 1;
      if (raw === converted)
        throw this.invalid(
          tensor,
          `has shape ${tensor.shape.join(' x ')}, expected channels x taps x 1 or channels x 1 x taps`,
        );
      first ??= { tensor, raw };
      if (first.raw !== raw)
        throw this.invalid(
          tensor,
          `is laid out otherwise than ${quoted(first.tensor.name)}: two checkpoints are mixed up`,
        );
    }
    return first?.raw ?? !this.stored.some(({ name }) => name.includes('.switch_mlp.'));
  }

  private add(tensor: StoredTensor): void {
    if (SINGLE_EXPERT.test(tensor.name))
      throw this.unsupported(
        tensor,
        'holds one expert by itself; this build reads experts stacked per layer',
      );
    const module = tensor.name.replace(/\.[^.]+$/, '');
    const sides = SIDES.map((side) => this.byName.get(`${module}.${side}`));
    if (sides.includes(tensor)) {
      if (!this.byName.has(`${module}.weight`)) throw this.invalid(tensor, 'has no weight beside it');
      return;
    }
    const name = ggufName(tensor.name);
    const [scales, biases] = sides;
    const isQuantised = tensor.name.endsWith('.weight') && scales !== undefined;
    const made = isQuantised ? this.affine(module, tensor, scales, biases) : this.plain(name, tensor);
    this.put({ ...made, name: name ?? tensor.name }, isQuantised ? [tensor, scales, biases!] : [tensor]);
  }

  private put(made: SourceTensor, from: readonly StoredTensor[]): void {
    if (this.named.has(made.name))
      throw this.invalid(from[0]!, `is the same as ${quoted(this.madeOf.get(made.name)![0]!)}`);
    this.named.set(made.name, made);
    this.madeOf.set(
      made.name,
      from.map(({ name }) => name),
    );
  }

  private plain(name: string | undefined, tensor: StoredTensor): SourceTensor {
    const change = name === undefined ? undefined : changeOf(name, this.shifted);
    const reversed = [...tensor.shape].reverse();
    // (channels, taps, 1) and (channels, 1, taps) are both taps by channels.
    const shape = CONVOLUTION.test(name ?? '') ? reversed.filter((size) => size !== 1) : reversed;
    return {
      ...placeOf(tensor),
      name: tensor.name,
      type: typeOfDtype(tensor.dtype),
      shape,
      ...(change === undefined ? {} : { change }),
    };
  }

  private affine(
    module: string,
    weight: StoredTensor,
    scales: StoredTensor,
    biases: StoredTensor | undefined,
  ): SourceTensor {
    const { bits, group } = this.config.quantizationOf(module);
    const type = affineType(bits, group);
    if (type === undefined) throw this.unsupported(weight, `has ${bits} bits in groups of ${group}`);
    if (biases === undefined) throw this.invalid(weight, 'has scales and no biases');
    if (weight.dtype !== 'U32') throw this.unsupported(weight, `has codes of dtype ${weight.dtype}`);
    for (const side of [scales, biases]) {
      if (side.dtype !== 'BF16')
        throw this.unsupported(side, `has dtype ${side.dtype}, only BF16 can be computed with`);
      const fits =
        side.shape.length === weight.shape.length &&
        side.shape.slice(0, -1).every((size, axis) => size === weight.shape[axis]) &&
        side.shape.at(-1)! * group * bits === weight.shape.at(-1)! * 32;
      if (!fits) {
        throw this.invalid(
          side,
          `has shape ${side.shape.join(' x ')}, which codes of ${weight.shape.join(' x ')} words with ${bits} bits in groups of ${group} do not have`,
        );
      }
    }
    const shape = [...weight.shape].reverse();
    shape[0] = scales.shape.at(-1)! * group;
    const bytes = affineBytes(
      type,
      shape.reduce((product, size) => product * size, 1),
    );
    if (bytes.codes !== weight.byteLength || bytes.side !== scales.byteLength)
      throw this.invalid(weight, `has ${weight.byteLength} bytes, its shape needs ${bytes.codes}`);
    return {
      ...placeOf(weight),
      name: weight.name,
      type,
      shape,
      scales: placeOf(scales),
      biases: placeOf(biases),
    };
  }
}

function placeOf({ file, offsetBytes, byteLength }: StoredTensor): Place {
  return { file, offsetBytes, byteLength };
}

/** A type that can be computed with, or one that is only known by name. */
function typeOfDtype(dtype: string): GgmlType {
  if (dtype === 'BF16' || dtype === 'F16' || dtype === 'F32') return ggmlTypeNamed(dtype);
  return { name: dtype, id: -1, blockSize: 1, blockBytes: 1, supported: false };
}
