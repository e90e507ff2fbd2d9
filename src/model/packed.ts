/**
 * Packed models: a folder in which every expert is one contiguous, page-aligned piece of a file.
 *
 * A GGUF keeps gate, up and down of an expert in three places, an MLX checkpoint in nine, so that one expert costs as many
 * reads of which none starts on a page. `moestream pack` lays them back to back; docs/format.md describes the folder. This file reads it. The manifest
 * is untrusted input like any header. Invariant: what `readPacked` returns agrees with itself, with the sizes of the files
 * that are really there, and, after `packedExperts`, with the model. Anything else is MODEL_INVALID naming the field. File
 * names are plain names inside the folder. The checksums are kept for `moestream verify`; opening compares none.
 */
import { closeSync, existsSync, fstatSync, openSync, readFileSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { affineBytes, tensorTypeNamed } from './affine-types.ts';
import { CONFIG_NAME, TEXT_NAMES } from './checkpoint-config.ts';
import { type GgmlType, rowBytes } from './ggml-types.ts';
import { decodeUtf8, quoted } from './header-reader.ts';
import type { Hyperparameters } from './hyperparameters.ts';
import type { StridedPlace } from './places.ts';
import type { ExpertMatrix, ExpertTensors } from './tensor-map.ts';

export const PACKED_FORMAT = 'moestream-packed';
/** Of a packed GGUF. */
export const PACKED_VERSION = 1;
/** Of a packed checkpoint: the dense file is safetensors, its texts lie beside it, and matrices may be affine. */
export const PACKED_CHECKPOINT_VERSION = 2;
export const MANIFEST_NAME = 'manifest.json';
export const DENSE_NAME = 'model.gguf';
export const DENSE_CHECKPOINT_NAME = 'model.safetensors';
/** Kept while a folder is being packed, see src/pack/journal.ts. */
export const JOURNAL_NAME = 'pack.journal';
/** Experts start on the page size of Apple Silicon, the largest in use. */
export const STRIDE_ALIGN_BYTES = 16384;

/** The matrices of an expert in the order in which they lie in the file. */
export const PACKED_MATRICES = ['gate', 'up', 'down'] as const;

/** 397B's manifest has half a megabyte. */
const MANIFEST_BYTES_MAX = 1 << 26;
const LAYERS_MAX = 1 << 14;
const EXPERTS_MAX = 1 << 16;
const DIMENSION_MAX = 1 << 24;
const STRIDE_BYTES_MAX = 2 ** 32;
const FILE_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$/;

export interface PackedMatrix {
  readonly type: GgmlType;
  readonly rows: number;
  readonly cols: number;
  readonly byteLength: number;
}

export interface PackedLayer {
  readonly file: string;
  readonly experts: number;
  /** Expert e is at `e * strideBytes`. */
  readonly strideBytes: number;
  readonly gate: PackedMatrix;
  readonly up: PackedMatrix;
  readonly down: PackedMatrix;
  /** (experts), over the three matrices without the padding behind them. */
  readonly crc32: readonly number[];
}

export interface PackedDense {
  readonly file: string;
  readonly sizeBytes: number;
  readonly crc32: number;
}

/** A small file of a checkpoint, copied. */
export type PackedText = PackedDense;

export interface PackedSource {
  readonly fingerprint: string;
  readonly files: readonly { readonly name: string; readonly sizeBytes: number }[];
}

export interface PackedManifest {
  readonly source: PackedSource;
  readonly dense: PackedDense;
  /** Of a checkpoint: its configuration and tokenizer. */
  readonly texts: readonly PackedText[];
  readonly layers: readonly PackedLayer[];
}

/** A packed folder whose manifest is sound and whose files have the sizes that it gives. */
export interface Packed extends PackedManifest {
  readonly manifestPath: string;
  readonly densePath: string;
  /** The dense file, then one per layer: what `file` of a tensor indexes. */
  readonly files: readonly { readonly path: string; readonly sizeBytes: number }[];
}

/** The bytes of one expert of a layer, without padding. */
export function packedExpertBytes(layer: Pick<PackedLayer, 'gate' | 'up' | 'down'>): number {
  return layer.gate.byteLength + layer.up.byteLength + layer.down.byteLength;
}

export function hexOfCrc(crc: number): string {
  return crc.toString(16).padStart(8, '0');
}

/** One value of the manifest under its name, such as `layers[3].gate.rows`. */
class Field {
  private readonly value: unknown;
  private readonly name: string;
  private readonly path: string;

  constructor(path: string, value: unknown, name = '') {
    this.path = path;
    this.value = value;
    this.name = name;
  }

  invalid(problem: string): MoestreamError {
    const field = this.name === '' ? 'the manifest' : this.name;
    return new MoestreamError('MODEL_INVALID', `${this.path}: ${field} ${problem}`);
  }

  at(key: string): Field {
    const { value } = this;
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      throw this.invalid('is not an object');
    const inner = Object.hasOwn(value, key) ? (value as Record<string, unknown>)[key] : undefined;
    const field = new Field(this.path, inner, this.name === '' ? key : `${this.name}.${key}`);
    if (inner === undefined) throw field.invalid('is missing');
    return field;
  }

  items(min: number, max: number): Field[] {
    if (!Array.isArray(this.value)) throw this.invalid('is not a list');
    const { length } = this.value;
    if (length < min || length > max)
      throw this.invalid(`has ${length} entries, it must have ${min === max ? min : `${min} to ${max}`}`);
    return this.value.map((item, index) => new Field(this.path, item, `${this.name}[${index}]`));
  }

  text(): string {
    if (typeof this.value !== 'string') throw this.invalid('is not a string');
    return this.value;
  }

  integer(min: number, max: number): number {
    if (typeof this.value !== 'number' || !Number.isSafeInteger(this.value)) {
      throw this.invalid('is not a whole number');
    }
    if (this.value < min || this.value > max)
      throw this.invalid(`is ${this.value}, it must be between ${min} and ${max}`);
    return this.value;
  }

  /** A plain name: nothing that could lead out of the folder. */
  fileName(): string {
    const name = this.text();
    if (!FILE_NAME.test(name)) throw this.invalid(`is ${quoted(name)}, not a plain file name`);
    return name;
  }

  crc(): number {
    const digits = this.text();
    if (!/^[0-9a-f]{8}$/.test(digits)) throw this.invalid(`is ${quoted(digits)}, not eight hex digits`);
    return Number.parseInt(digits, 16);
  }
}

/** The folder that `path` names, by itself or by its manifest; undefined when it is a plain model file. */
export function packedFolder(path: string): string | undefined {
  if (basename(path) === MANIFEST_NAME) return dirname(path);
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) return undefined;
  // A checkpoint is a folder too.
  const isPacked = existsSync(join(path, MANIFEST_NAME)) || existsSync(join(path, JOURNAL_NAME));
  return isPacked || !existsSync(join(path, CONFIG_NAME)) ? path : undefined;
}

/** Reads and checks a packed folder. Throws MODEL_NOT_FOUND, MODEL_INVALID or MODEL_UNSUPPORTED. */
export function readPacked(folder: string): Packed {
  const manifestPath = join(folder, MANIFEST_NAME);
  const manifest = parseManifest(manifestPath, readText(folder, manifestPath));
  const names = new Set([MANIFEST_NAME]);
  const place = (field: string, name: string, sizeBytes: number): { path: string; sizeBytes: number } => {
    if (names.has(name)) {
      throw new MoestreamError('MODEL_INVALID', `${manifestPath}: ${field} is ${quoted(name)}, used twice`);
    }
    names.add(name);
    const path = join(folder, name);
    refuseOtherSize(path, sizeBytes);
    return { path, sizeBytes };
  };
  const dense = place('dense.file', manifest.dense.file, manifest.dense.sizeBytes);
  for (const [index, text] of manifest.texts.entries())
    place(`texts[${index}].file`, text.file, text.sizeBytes);
  const experts = manifest.layers.map((layer, index) =>
    place(`layers[${index}].file`, layer.file, layer.experts * layer.strideBytes),
  );
  return { ...manifest, manifestPath, densePath: dense.path, files: [dense, ...experts] };
}

/** Where the experts of a packed model lie. Throws MODEL_INVALID when they are not those of this model. */
export function packedExperts(packed: Packed, model: Hyperparameters): ExpertTensors[] {
  const { hidden, expertWidth, experts, layers } = model;
  const expect = (field: string, actual: number, expected: number): void => {
    if (actual === expected) return;
    throw new MoestreamError(
      'MODEL_INVALID',
      `${packed.manifestPath}: ${field} is ${actual}, the model has ${expected}`,
    );
  };
  expect('the number of layers', packed.layers.length, layers);
  return packed.layers.map((layer, index) => {
    const name = `layers[${index}]`;
    expect(`${name}.experts`, layer.experts, experts);
    let offsetBytes = 0;
    const matrix = (part: (typeof PACKED_MATRICES)[number], rows: number, cols: number): ExpertMatrix => {
      const { type, byteLength, ...shape } = layer[part];
      expect(`${name}.${part}.rows`, shape.rows, rows);
      expect(`${name}.${part}.cols`, shape.cols, cols);
      const next = (bytes: number): StridedPlace => {
        const placed = { file: 1 + index, offsetBytes, strideBytes: layer.strideBytes, byteLength: bytes };
        offsetBytes += bytes;
        return placed;
      };
      if (type.affine === undefined) return { type, rows, cols, ...next(byteLength) };
      const bytes = affineBytes(type, rows * cols);
      return { type, rows, cols, ...next(bytes.codes), scales: next(bytes.side), biases: next(bytes.side) };
    };
    return {
      gate: matrix('gate', expertWidth, hidden),
      up: matrix('up', expertWidth, hidden),
      down: matrix('down', hidden, expertWidth),
    };
  });
}

function parseManifest(path: string, text: string): PackedManifest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MoestreamError('MODEL_INVALID', `${path}: not JSON: ${quoted(reason)}`, { cause });
  }
  const root = new Field(path, value);
  const format = root.at('format').text();
  if (format !== PACKED_FORMAT)
    throw root.at('format').invalid(`is ${quoted(format)}, not "${PACKED_FORMAT}"`);
  const version = root.at('version').integer(0, Number.MAX_SAFE_INTEGER);
  const isCheckpoint = version === PACKED_CHECKPOINT_VERSION;
  if (version !== PACKED_VERSION && !isCheckpoint) {
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${path}: packed in version ${version} of the format, this build reads ${PACKED_VERSION} and ${PACKED_CHECKPOINT_VERSION}`,
      { hint: 'Pack the model again, or use the moestream that packed it.' },
    );
  }
  const source = root.at('source');
  const dense = root.at('dense');
  return {
    source: {
      fingerprint: source.at('fingerprint').text(),
      files: source
        .at('files')
        .items(1, LAYERS_MAX)
        .map((file) => ({
          name: file.at('name').text(),
          sizeBytes: file.at('sizeBytes').integer(0, Number.MAX_SAFE_INTEGER),
        })),
    },
    dense: parseWhole(dense, [isCheckpoint ? DENSE_CHECKPOINT_NAME : DENSE_NAME]),
    texts: isCheckpoint
      ? root
          .at('texts')
          .items(1, TEXT_NAMES.length)
          .map((text) => parseWhole(text, TEXT_NAMES))
      : [],
    layers: root
      .at('layers')
      .items(1, LAYERS_MAX)
      .map((layer) => parseLayer(layer, isCheckpoint)),
  };
}

/** Only these names: one that looks like a part of a split set would bring in more files. */
function parseWhole(field: Field, names: readonly string[]): PackedDense {
  const file = field.at('file').fileName();
  if (!names.includes(file))
    throw field
      .at('file')
      .invalid(`is ${quoted(file)}, not ${names.map((name) => `"${name}"`).join(' or ')}`);
  return {
    file,
    sizeBytes: field.at('sizeBytes').integer(1, Number.MAX_SAFE_INTEGER),
    crc32: field.at('crc32').crc(),
  };
}

function parseLayer(field: Field, isCheckpoint: boolean): PackedLayer {
  const experts = field.at('experts').integer(1, EXPERTS_MAX);
  const strideBytes = field.at('strideBytes').integer(STRIDE_ALIGN_BYTES, STRIDE_BYTES_MAX);
  if (strideBytes % STRIDE_ALIGN_BYTES !== 0) {
    throw field.at('strideBytes').invalid(`is ${strideBytes}, not a multiple of ${STRIDE_ALIGN_BYTES}`);
  }
  const layer = {
    file: field.at('file').fileName(),
    experts,
    strideBytes,
    gate: parseMatrix(field.at('gate'), isCheckpoint),
    up: parseMatrix(field.at('up'), isCheckpoint),
    down: parseMatrix(field.at('down'), isCheckpoint),
    crc32: field
      .at('crc32')
      .items(experts, experts)
      .map((item) => item.crc()),
  };
  const bytes = packedExpertBytes(layer);
  if (bytes > strideBytes)
    throw field.at('strideBytes').invalid(`is ${strideBytes}, but an expert has ${bytes} bytes`);
  return layer;
}

function parseMatrix(field: Field, isCheckpoint: boolean): PackedMatrix {
  const rows = field.at('rows').integer(1, DIMENSION_MAX);
  const cols = field.at('cols').integer(1, DIMENSION_MAX);
  const type = parseType(field.at('type'), isCheckpoint);
  if (cols % type.blockSize !== 0) {
    throw field
      .at('cols')
      .invalid(`is ${cols}, not a multiple of the block of ${type.blockSize} of ${type.name}`);
  }
  const byteLength = field.at('byteLength').integer(1, STRIDE_BYTES_MAX);
  const expected = rows * rowBytes(type, cols);
  if (byteLength !== expected)
    throw field.at('byteLength').invalid(`is ${byteLength}, but its rows take ${expected}`);
  return { type, rows, cols, byteLength };
}

function parseType(field: Field, isCheckpoint: boolean): GgmlType {
  const name = field.text();
  const type = tensorTypeNamed(name);
  if (type === undefined || (type.affine !== undefined && !isCheckpoint))
    throw field.invalid(`is ${quoted(name)}, which is no ${isCheckpoint ? '' : 'ggml '}type`);
  if (type.supported) return type;
  throw new MoestreamError(
    'MODEL_UNSUPPORTED',
    field.invalid(`is ${name}, which cannot be computed with`).message,
  );
}

function readText(folder: string, path: string): string {
  let fd: number;
  try {
    if (statSync(path).isFile() === false)
      throw new MoestreamError('MODEL_INVALID', `${path}: no regular file`);
    fd = openSync(path, 'r');
  } catch (error) {
    if (MoestreamError.is(error)) throw error;
    throw notThere(folder, path, error);
  }
  try {
    const { size } = fstatSync(fd);
    if (size > MANIFEST_BYTES_MAX) {
      throw new MoestreamError(
        'MODEL_INVALID',
        `${path}: has ${size} bytes, the limit is ${MANIFEST_BYTES_MAX}`,
      );
    }
    const text = decodeUtf8(readFileSync(fd));
    if (text === undefined) throw new MoestreamError('MODEL_INVALID', `${path}: not UTF-8`);
    return text;
  } finally {
    closeSync(fd);
  }
}

function notThere(folder: string, path: string, cause: unknown): MoestreamError {
  const code = (cause as NodeJS.ErrnoException).code ?? 'unknown error';
  if (code !== 'ENOENT') {
    return new MoestreamError('MODEL_NOT_FOUND', `${path}: cannot be opened (${code})`, { cause });
  }
  const begun = statSync(join(folder, JOURNAL_NAME), { throwIfNoEntry: false }) !== undefined;
  return new MoestreamError(
    'MODEL_NOT_FOUND',
    begun
      ? `${folder}: its packing has not been finished`
      : `${folder}: a folder without ${MANIFEST_NAME}, not a packed model`,
    {
      hint: begun
        ? 'Run the same `moestream pack` again: it goes on where it was.'
        : 'Give the path of a .gguf file, of a checkpoint folder, or of one that `moestream pack` wrote.',
      cause,
    },
  );
}

function refuseOtherSize(path: string, sizeBytes: number): void {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined) {
    throw new MoestreamError('MODEL_NOT_FOUND', `${path}: a file of a packed model is missing`, {
      hint: 'Copy the whole folder, or pack the model again.',
    });
  }
  if (!found.isFile()) throw new MoestreamError('MODEL_INVALID', `${path}: no regular file`);
  if (found.size === sizeBytes) return;
  throw new MoestreamError(
    'MODEL_INVALID',
    `${path}: has ${found.size} bytes, the manifest says ${sizeBytes}`,
    { hint: 'The file is damaged or was not copied to its end: copy it again, or pack the model again.' },
  );
}
