/**
 * What a requantised model consists of: files, their headers, and where each of their bytes comes from.
 *
 * Everything but the routed experts is copied byte for byte. A GGUF becomes one GGUF, whatever number of parts it had; a
 * checkpoint keeps its shards, and its configuration names the new bits of every expert module. Nothing is read here but
 * what opening the model has read.
 */
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { AFFINE_BITS, affineBytes, affineType } from '../model/affine-types.ts';
import { type Checkpoint, INDEX_NAME, type StoredTensor } from '../model/checkpoint.ts';
import { CONFIG_NAME } from '../model/checkpoint-config.ts';
import { type GgmlType, ggmlTypeNamed, rowBytes } from '../model/ggml-types.ts';
import type { Gguf } from '../model/gguf.ts';
import type { Model } from '../model/model.ts';
import type { SourceTensor } from '../model/model-source.ts';
import { type Place, partsOf } from '../model/places.ts';
import { textsOf } from '../pack/checkpoint-texts.ts';
import { encodeSafetensors } from '../pack/dense-checkpoint.ts';
import { encodeGguf } from '../pack/dense-gguf.ts';
import { isSplitKey } from '../pack/fingerprint.ts';

/** Targets for the experts of a GGUF; those of a checkpoint are `affineN`. */
export const GGUF_TARGETS = ['Q8_0', 'Q4_0', 'Q4_K', 'IQ4_NL'] as const;
export const AFFINE_TARGETS = AFFINE_BITS.map((bits) => `affine${bits}`);

/** Values of one type where they were, and where they go: one stretch of bytes, or codes, scales and biases. */
export interface Conversion {
  readonly name: string;
  readonly from: GgmlType;
  readonly to: GgmlType;
  readonly values: number;
  readonly sources: readonly Place[];
  readonly targets: readonly Target[];
}

export interface Target {
  /** Index into the plan's files. */
  readonly file: number;
  readonly offsetBytes: number;
}

export interface Copy {
  readonly source: Place;
  readonly target: Target;
}

export interface NewFile {
  /** Below the output's folder. */
  readonly name: string;
  readonly header: Buffer;
  readonly sizeBytes: number;
}

export interface RequantizePlan {
  readonly target: string;
  /** Where `copies` and `conversions` read. */
  readonly sources: readonly string[];
  readonly files: readonly NewFile[];
  readonly copies: readonly Copy[];
  readonly conversions: readonly Conversion[];
  /** Whole small files, written last: with them the output can be opened. */
  readonly texts: readonly { readonly name: string; readonly bytes: Buffer }[];
}

/** Plans the experts of `model` in another type. Throws USAGE and MODEL_UNSUPPORTED. `name` is that of a new GGUF. */
export function planRequantize(model: Model, target: string, name: string): RequantizePlan {
  if (model.packed !== undefined) {
    throw new MoestreamError('USAGE', 'a packed model is not requantised', {
      hint: 'Requantise the model that it was packed from, and pack the result.',
    });
  }
  const { source } = model;
  if ('stored' in source) return planCheckpoint(model, source, affineTarget(target));
  const type = GGUF_TARGETS.find((each) => each === target.toUpperCase());
  if (type === undefined) throw unknownTarget(target, 'a GGUF', GGUF_TARGETS);
  return planGguf(model, source, ggmlTypeNamed(type), name);
}

function unknownTarget(target: string, what: string, targets: readonly string[]): MoestreamError {
  return new MoestreamError('USAGE', `the experts of ${what} cannot become ${target}`, {
    hint: `Choose one of ${targets.join(', ')}.`,
  });
}

function affineTarget(target: string): number {
  const bits = AFFINE_BITS.find((each) => `affine${each}` === target.toLowerCase());
  if (bits === undefined) throw unknownTarget(target, 'a checkpoint', AFFINE_TARGETS);
  return bits;
}

function refuseHalfBlocks(name: string, cols: number, type: GgmlType): void {
  if (cols % type.blockSize === 0) return;
  throw new MoestreamError(
    'MODEL_UNSUPPORTED',
    `${name}: rows of ${cols} values are no whole ${type.name} blocks of ${type.blockSize}`,
    { hint: 'Choose a type with smaller blocks, such as Q4_0 or IQ4_NL.' },
  );
}

const valuesOf = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

/** Says of the whole file, or of the statistics that it was quantised with: not true of the new one. */
const isStaleKey = (key: string): boolean => key === 'general.file_type' || key.startsWith('quantize.');

function planGguf(model: Model, gguf: Gguf, type: GgmlType, name: string): RequantizePlan {
  const experts = new Set(model.tensors.expertTensors);
  const tensors = [...gguf.tensors.values()].map((tensor) => {
    if (!experts.has(tensor.name)) return tensor;
    const [cols = 0] = tensor.shape;
    refuseHalfBlocks(tensor.name, cols, type);
    return { ...tensor, type, byteLength: (rowBytes(type, cols) * valuesOf(tensor.shape)) / cols };
  });
  const leaveOut = (key: string): boolean => isSplitKey(key) || isStaleKey(key);
  const { header, offsetsBytes, sizeBytes } = encodeGguf(gguf, tensors, leaveOut);
  const copies: Copy[] = [];
  const conversions: Conversion[] = [];
  for (const [index, { name: tensorName }] of tensors.entries()) {
    const before = gguf.tensors.get(tensorName)!;
    const target = { file: 0, offsetBytes: offsetsBytes[index]! };
    if (before.type.id === tensors[index]!.type.id) copies.push({ source: before, target });
    else {
      const values = valuesOf(before.shape);
      conversions.push({
        name: tensorName,
        from: before.type,
        to: type,
        values,
        sources: [before],
        targets: [target],
      });
    }
  }
  const sources = gguf.files.map((file) => file.path);
  return { target: type.name, sources, files: [{ name, header, sizeBytes }], copies, conversions, texts: [] };
}

/** A tensor of a shard as it will be. */
interface NewTensor extends Omit<StoredTensor, 'offsetBytes'> {
  readonly old: StoredTensor;
}

function planCheckpoint(model: Model, checkpoint: Checkpoint, bits: number): RequantizePlan {
  const modules = expertModules(model, checkpoint, bits);
  const changed = new Map(modules.flatMap((module) => module.stored.map((name) => [name, module] as const)));
  const news = checkpoint.stored.map((old): NewTensor => {
    const module = changed.get(old.name);
    const isCodes = module !== undefined && module.stored[0] === old.name;
    if (!isCodes) return { ...old, old };
    const byteLength = affineBytes(module.to, module.values).codes;
    // Words of 32 bits: the last dimension holds as many codes as before in other words.
    const shape = [...old.shape.slice(0, -1), (old.shape.at(-1)! * bits) / module.from.affine!.bits];
    return { ...old, old, shape, byteLength };
  });
  const files = checkpoint.files.map(({ path }, file) => {
    const tensors = news.filter((tensor) => tensor.file === file);
    const header = encodeSafetensors(tensors);
    const dataBytes = tensors.reduce((sum, { byteLength }) => sum + byteLength, 0);
    return { name: basename(path), header, sizeBytes: header.length + dataBytes, tensors };
  });
  const targets = new Map<string, Target>();
  for (const [file, { header, tensors }] of files.entries()) {
    let offsetBytes = header.length;
    for (const tensor of tensors) {
      targets.set(tensor.name, { file, offsetBytes });
      offsetBytes += tensor.byteLength;
    }
  }
  const copies = news
    .filter(({ name }) => !changed.has(name))
    .map(({ name, old }) => ({ source: old, target: targets.get(name)! }));
  const conversions = modules.map(({ stored, tensor, from, to, values }) => ({
    name: stored[0]!,
    from,
    to,
    values,
    sources: partsOf<Place>(tensor),
    targets: stored.map((name) => targets.get(name)!),
  }));
  const newBytes = news.reduce((sum, { byteLength }) => sum + byteLength, 0);
  return {
    target: `affine${bits}`,
    sources: checkpoint.files.map((file) => file.path),
    files,
    copies,
    conversions,
    texts: newTexts(checkpoint, modules, bits, newBytes),
  };
}

interface ExpertModule {
  /** Codes, scales and biases, as the checkpoint calls them. */
  readonly stored: readonly string[];
  readonly tensor: SourceTensor;
  readonly from: GgmlType;
  readonly to: GgmlType;
  readonly values: number;
}

function expertModules(model: Model, checkpoint: Checkpoint, bits: number): ExpertModule[] {
  return model.tensors.expertTensors.flatMap((name) => {
    const tensor = checkpoint.tensors.get(name)!;
    const stored = checkpoint.madeOf.get(name)!;
    const { affine } = tensor.type;
    if (affine === undefined) {
      throw new MoestreamError(
        'MODEL_UNSUPPORTED',
        `${stored[0]} is ${tensor.type.name}, not of an affine type`,
        {
          hint: 'Only checkpoints that MLX has quantised are requantised.',
        },
      );
    }
    if (affine.bits === bits) return [];
    const to = affineType(bits, affine.group)!;
    return [{ stored, tensor, from: tensor.type, to, values: valuesOf(tensor.shape) }];
  });
}

/** The configuration with the new bits, the index with the new size, and the other texts as they are. */
function newTexts(
  checkpoint: Checkpoint,
  modules: readonly ExpertModule[],
  bits: number,
  totalBytes: number,
): RequantizePlan['texts'] {
  const others = textsOf(checkpoint)
    .filter(({ name }) => name !== CONFIG_NAME)
    .map(({ name, path }) => ({ name, bytes: readFileSync(path) }));
  const config = JSON.parse(readFileSync(join(checkpoint.folder, CONFIG_NAME), 'utf8'));
  for (const key of ['quantization', 'quantization_config']) {
    if (config[key] === undefined) continue;
    for (const { stored, to } of modules) {
      config[key][stored[0]!.replace(/\.weight$/, '')] = { group_size: to.affine!.group, bits };
    }
  }
  const texts = [...others];
  if (checkpoint.files.length > 1) {
    const index = JSON.parse(readFileSync(join(checkpoint.folder, INDEX_NAME), 'utf8'));
    index.metadata = { ...index.metadata, total_size: totalBytes };
    texts.push({ name: INDEX_NAME, bytes: Buffer.from(`${JSON.stringify(index, undefined, 2)}\n`) });
  }
  // Last: a folder without it is no checkpoint yet.
  return [...texts, { name: CONFIG_NAME, bytes: Buffer.from(`${JSON.stringify(config, undefined, 2)}\n`) }];
}
