/**
 * The GGUF v3 reader: where every tensor of a model lies, in one file or in a set of split files.
 *
 * Why our own: a model file is untrusted input of up to hundreds of gigabytes, and every later read trusts the offsets
 * found here. Invariant: a tensor that this module returns lies wholly inside its file, overlaps no other, starts at a
 * multiple of the file's alignment and is as long as its shape and type say. Anything else is MODEL_INVALID naming the
 * file, the field and the value. Files of 397 B parameters are opened by reading their headers only, 11 MB.
 */
import { existsSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { GGML_TYPES, type GgmlType, rowBytes } from './ggml-types.ts';
import { identify } from './gguf-magic.ts';
import { GgufMetadata, readValues } from './gguf-metadata.ts';
import { HeaderReader, quoted } from './header-reader.ts';
import type { ModelSource, SourceFile, SourceTensor } from './model-source.ts';

export interface GgufFile extends SourceFile {
  /** Where the data section begins; tensor offsets in the file are relative to it. */
  readonly dataOffsetBytes: number;
}

export type GgufTensor = SourceTensor;

export interface Gguf extends ModelSource {
  readonly files: readonly GgufFile[];
  /** Of the first part, which carries all of it. */
  readonly metadata: GgufMetadata;
  /** In file order. */
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

interface Part {
  readonly file: GgufFile;
  readonly metadata: GgufMetadata;
  readonly tensors: GgufTensor[];
}

const DEFAULT_ALIGNMENT = 32;
const KEYS_MAX = 1 << 16;
/** 397B has 1,100 tensors; one per expert matrix, as some converters write them, would be 92,160. */
const TENSORS_MAX = 1 << 18;
/** ggml keeps names in 64 bytes including the terminating zero. */
const TENSOR_NAME_BYTES_MAX = 63;
const SPLITS_MAX = 1024;
const SPLIT_NAME = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/s;

/** Opens a GGUF model; `path` may be any part of a split set. */
export function readGguf(path: string): Gguf {
  const name = SPLIT_NAME.exec(basename(path));
  if (name === null) return single(path);
  const [, prefix, number, total] = name;
  const partCount = Number(total);
  if (partCount < 1 || partCount > SPLITS_MAX || Number(number) < 1 || Number(number) > partCount) {
    throw new MoestreamError(
      'MODEL_INVALID',
      `${path}: the name says part ${number} of ${total}, which cannot be`,
    );
  }
  if (partCount === 1) return single(path);
  const partPath = (index: number): string =>
    join(dirname(path), `${prefix}-${String(index + 1).padStart(5, '0')}-of-${total}.gguf`);
  return splitSet(Array.from({ length: partCount }, (_, index) => partPath(index)));
}

function single(path: string): Gguf {
  const part = readPart(path, 0);
  const count = part.metadata.optionalInteger('split.count', 0, 65535) ?? 0;
  if (count > 1) {
    throw new MoestreamError(
      'MODEL_INVALID',
      `${path}: is one of ${count} parts, but is not named like a part`,
      {
        hint: `Parts are found by name: name them NAME-00001-of-${String(count).padStart(5, '0')}.gguf and so on.`,
      },
    );
  }
  return { files: [part.file], metadata: part.metadata, tensors: index([part]) };
}

function splitSet(paths: readonly string[]): Gguf {
  for (const [number, path] of paths.entries()) {
    if (existsSync(path)) continue;
    throw new MoestreamError('MODEL_NOT_FOUND', `${path}: part ${number + 1} of ${paths.length} is missing`, {
      hint: 'All parts of a split model must lie in one folder.',
    });
  }
  const parts = paths.map((path, number) => {
    const part = readPart(path, number);
    const count = part.metadata.integer('split.count', 0, 65535);
    if (count !== paths.length) {
      throw part.metadata.invalid('split.count', `is ${count}, the file name says ${paths.length}`);
    }
    const no = part.metadata.integer('split.no', 0, 65535);
    if (no !== number)
      throw part.metadata.invalid('split.no', `is ${no}, the file name says part ${number + 1}`);
    return part;
  });
  const metadata = parts[0]!.metadata;
  const tensors = index(parts);
  const promised = metadata.integer('split.tensors.count', 0, Number.MAX_SAFE_INTEGER);
  if (promised !== tensors.size) {
    throw metadata.invalid('split.tensors.count', `is ${promised}, the parts hold ${tensors.size} tensors`);
  }
  return { files: parts.map((part) => part.file), metadata, tensors };
}

function index(parts: readonly Part[]): Map<string, GgufTensor> {
  const tensors = new Map<string, GgufTensor>();
  for (const part of parts) {
    for (const tensor of part.tensors) {
      if (tensors.has(tensor.name)) {
        throw new MoestreamError(
          'MODEL_INVALID',
          `${part.file.path}: tensor ${quoted(tensor.name)} occurs twice`,
        );
      }
      tensors.set(tensor.name, tensor);
    }
  }
  return tensors;
}

function readPart(path: string, file: number): Part {
  const reader = new HeaderReader(path);
  try {
    identify(reader);
    const tensorCount = boundedCount(reader, 'the number of tensors', TENSORS_MAX, 24);
    const keyCount = boundedCount(reader, 'the number of metadata keys', KEYS_MAX, 13);
    const values = readValues(reader, keyCount);
    const infos = Array.from({ length: tensorCount }, (_, number) => readTensorInfo(reader, number));
    const metadata = new GgufMetadata(path, Buffer.from(reader.header()), values);
    const alignment = readAlignment(metadata);
    const dataOffsetBytes = Math.ceil(reader.positionBytes / alignment) * alignment;
    const tensors = infos.map((info) => place(reader, info, file, dataOffsetBytes, alignment));
    refuseOverlaps(reader, tensors);
    return { file: { path, sizeBytes: reader.sizeBytes, dataOffsetBytes }, metadata, tensors };
  } finally {
    reader.close();
  }
}

/** A count of things that take at least `minBytes` each, so that a lie is seen before it is believed. */
function boundedCount(reader: HeaderReader, what: string, max: number, minBytes: number): number {
  const count = reader.u64(what);
  if (count > max) throw reader.invalid(`${what} is ${count}, the limit is ${max}`);
  if (count * minBytes > reader.remainingBytes)
    throw reader.invalid(`${what} is ${count}, more than the file holds`);
  return count;
}

interface TensorInfo {
  readonly name: string;
  readonly shape: number[];
  readonly typeId: number;
  readonly relativeOffsetBytes: number;
}

function readTensorInfo(reader: HeaderReader, number: number): TensorInfo {
  const name = reader.string(TENSOR_NAME_BYTES_MAX, `the name of tensor ${number}`);
  if (name.length === 0) throw reader.invalid(`tensor ${number} has an empty name`);
  const what = `tensor ${quoted(name)}`;
  const dimensionCount = reader.u32(`the number of dimensions of ${what}`);
  if (dimensionCount < 1 || dimensionCount > 4) {
    throw reader.invalid(`${what} has ${dimensionCount} dimensions, it must have 1 to 4`);
  }
  const shape: number[] = [];
  for (let axis = 0; axis < dimensionCount; axis++) {
    const size = reader.u64(`dimension ${axis} of ${what}`);
    if (size < 1) throw reader.invalid(`dimension ${axis} of ${what} is 0`);
    shape.push(size);
  }
  const typeId = reader.u32(`the type of ${what}`);
  const relativeOffsetBytes = reader.u64(`the offset of ${what}`);
  return { name, shape, typeId, relativeOffsetBytes };
}

/** What tensor offsets are a multiple of. */
export function readAlignment(metadata: GgufMetadata): number {
  const key = 'general.alignment';
  const alignment = metadata.optionalInteger(key, 8, 65536) ?? DEFAULT_ALIGNMENT;
  if ((alignment & (alignment - 1)) !== 0)
    throw metadata.invalid(key, `is ${alignment}, it must be a power of two`);
  return alignment;
}

function place(
  reader: HeaderReader,
  info: TensorInfo,
  file: number,
  dataOffsetBytes: number,
  alignment: number,
): GgufTensor {
  const { name, shape, typeId, relativeOffsetBytes } = info;
  const what = `tensor ${quoted(name)}`;
  const type = GGML_TYPES.get(typeId);
  if (type === undefined) {
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${reader.path}: ${what} has ggml type ${typeId}, unknown to this build`,
    );
  }
  const byteLength = tensorBytes(reader, what, type, shape);
  if (relativeOffsetBytes % alignment !== 0) {
    throw reader.invalid(
      `the offset of ${what} is ${relativeOffsetBytes}, not a multiple of the alignment ${alignment}`,
    );
  }
  const offsetBytes = dataOffsetBytes + relativeOffsetBytes;
  const endBytes = offsetBytes + byteLength;
  if (!Number.isSafeInteger(endBytes) || endBytes > reader.sizeBytes) {
    throw reader.invalid(
      `${what} ends at byte ${endBytes}, the file has ${reader.sizeBytes}`,
      'The file is damaged or its download did not finish: fetch it again.',
    );
  }
  return { name, type, shape, file, offsetBytes, byteLength };
}

function tensorBytes(reader: HeaderReader, what: string, type: GgmlType, shape: readonly number[]): number {
  const [cols, ...rest] = shape as readonly [number, ...number[]];
  if (cols % type.blockSize !== 0) {
    throw reader.invalid(
      `${what} has rows of ${cols} values, not a multiple of the ${type.blockSize} of ${type.name}`,
    );
  }
  let byteLength = rowBytes(type, cols);
  // Checked at every step: a product that passes 2^53 on the way would come back as a plausible number.
  for (const size of rest) {
    byteLength *= size;
    if (!Number.isSafeInteger(byteLength))
      throw reader.invalid(`${what} of shape ${shape.join(' x ')} has too many bytes`);
  }
  if (!Number.isSafeInteger(byteLength))
    throw reader.invalid(`${what} of shape ${shape.join(' x ')} has too many bytes`);
  return byteLength;
}

function refuseOverlaps(reader: HeaderReader, tensors: readonly GgufTensor[]): void {
  const ordered = [...tensors].sort((a, b) => a.offsetBytes - b.offsetBytes);
  for (let next = 1; next < ordered.length; next++) {
    const before = ordered[next - 1]!;
    const after = ordered[next]!;
    if (before.offsetBytes + before.byteLength <= after.offsetBytes) continue;
    throw reader.invalid(
      `tensor ${quoted(after.name)} at byte ${after.offsetBytes} overlaps tensor ${quoted(before.name)}`,
    );
  }
}
