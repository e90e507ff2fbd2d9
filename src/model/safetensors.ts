/**
 * The safetensors reader: where every tensor of one file lies.
 *
 * A file is eight bytes with the length of a header, the header (JSON: name, dtype, shape, two offsets) and the bytes of
 * the tensors. It has no magic and no checksum, and it is as untrusted as any download. Invariant: a tensor that this
 * module returns lies wholly inside its file, overlaps no other, has a name of its own and is exactly as long as its shape
 * and dtype say. Anything else is MODEL_INVALID naming the file, the tensor and the value.
 * The number behind the limit: a shard of Qwen3.5-397B has a header of some 10 KB, one of a model with every expert in a
 * tensor of its own 10 MB; the format's own implementation refuses 100 MB too.
 */
import { MoestreamError } from '../errors.ts';
import { refuseOtherThanSafetensors } from './gguf-magic.ts';
import { decodeUtf8, HeaderReader, quoted } from './header-reader.ts';
import { isObject, JsonProblem, type JsonValue, parseStrictJson } from './strict-json.ts';

export const SAFETENSORS_HEADER_BYTES_MAX = 100_000_000;
const LENGTH_BYTES = 8;
const TENSORS_MAX = 1 << 20;
const DIMENSIONS_MAX = 8;
const NAME_CHARS_MAX = 1024;
const METADATA_KEY = '__metadata__';

/** Bytes of one element, by dtype. */
const DTYPE_BYTES: ReadonlyMap<string, number> = new Map([
  ...(['BOOL', 'U8', 'I8', 'F8_E4M3', 'F8_E5M2', 'F8_E8M0'] as const).map((name) => [name, 1] as const),
  ...(['BF16', 'F16', 'I16', 'U16'] as const).map((name) => [name, 2] as const),
  ...(['F32', 'I32', 'U32'] as const).map((name) => [name, 4] as const),
  ...(['F64', 'I64', 'U64', 'C64'] as const).map((name) => [name, 8] as const),
]);

export interface SafetensorsTensor {
  readonly name: string;
  readonly dtype: string;
  /** As in the file: the last dimension is contiguous. */
  readonly shape: readonly number[];
  /** From the beginning of the file. */
  readonly offsetBytes: number;
  readonly byteLength: number;
}

export interface SafetensorsFile {
  readonly path: string;
  readonly sizeBytes: number;
  /** In the order of their bytes. */
  readonly tensors: readonly SafetensorsTensor[];
}

/** Reads the header of one file. */
export function readSafetensors(path: string): SafetensorsFile {
  const reader = new HeaderReader(path);
  try {
    refuseOtherThanSafetensors(reader);
    const headerBytes = reader.u64('the length of the header');
    if (headerBytes > SAFETENSORS_HEADER_BYTES_MAX) {
      throw reader.invalid(
        `the header is ${headerBytes} bytes long, the limit is ${SAFETENSORS_HEADER_BYTES_MAX}`,
      );
    }
    const start = reader.take(headerBytes, 'the header');
    const header = reader.header().subarray(start);
    return { path, sizeBytes: reader.sizeBytes, tensors: parseSafetensors(path, header, reader.sizeBytes) };
  } finally {
    reader.close();
  }
}

/** The tensors that a header names, checked against each other and the size of the file. */
export function parseSafetensors(path: string, header: Uint8Array, sizeBytes: number): SafetensorsTensor[] {
  const dataBytes = LENGTH_BYTES + header.length;
  const entries = Object.entries(parseHeader(path, header)).filter(([name]) => name !== METADATA_KEY);
  if (entries.length > TENSORS_MAX)
    throw invalid(path, `the header names ${entries.length} tensors, the limit is ${TENSORS_MAX}`);
  const tensors = entries.map(([name, entry]) => parseTensor(path, name, entry, dataBytes, sizeBytes));
  tensors.sort((a, b) => a.offsetBytes - b.offsetBytes || a.byteLength - b.byteLength);
  refuseOverlaps(path, tensors);
  return tensors;
}

function invalid(path: string, problem: string, hint?: string): MoestreamError {
  return new MoestreamError('MODEL_INVALID', `${path}: ${problem}`, hint === undefined ? {} : { hint });
}

function parseHeader(path: string, header: Uint8Array): Readonly<Record<string, JsonValue>> {
  const text = decodeUtf8(header);
  if (text === undefined) throw invalid(path, 'the header is not UTF-8');
  if (!text.startsWith('{')) {
    const begin = quoted(text.slice(0, 8));
    throw invalid(path, `no safetensors file: its header begins with ${begin}, not with "{"`);
  }
  let value: JsonValue;
  try {
    value = parseStrictJson(text);
  } catch (error) {
    if (error instanceof JsonProblem) throw invalid(path, `the header ${error.message}`);
    throw error;
  }
  if (!isObject(value)) throw invalid(path, 'the header is not an object');
  return value;
}

function parseTensor(
  path: string,
  name: string,
  entry: JsonValue,
  dataBytes: number,
  sizeBytes: number,
): SafetensorsTensor {
  const what = `tensor ${quoted(name)}`;
  if (name === '' || name.length > NAME_CHARS_MAX)
    throw invalid(path, `${what} has no name that can be used`);
  if (!isObject(entry)) throw invalid(path, `${what} is not an object`);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== 'string') throw invalid(path, `${what} has no dtype`);
  const elementBytes = DTYPE_BYTES.get(dtype);
  if (elementBytes === undefined) {
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${path}: ${what} has dtype ${quoted(dtype)}, unknown to this build`,
    );
  }
  const sizes = integersOf(path, `the shape of ${what}`, shape, 0, DIMENSIONS_MAX);
  const [begin, end] = integersOf(path, `data_offsets of ${what}`, offsets, 2, 2) as [number, number];
  if (end < begin) throw invalid(path, `${what} ends at ${end}, before its beginning ${begin}`);
  const expected = sizes.reduce((product, size) => product * size, elementBytes);
  if (!Number.isSafeInteger(expected) || end - begin !== expected) {
    throw invalid(
      path,
      `${what} has ${end - begin} bytes, but ${dtype} of shape ${sizes.join(' x ')} takes ${expected}`,
    );
  }
  if (dataBytes + end > sizeBytes) {
    throw invalid(
      path,
      `the file is cut off: ${what} ends at byte ${dataBytes + end}, the file has ${sizeBytes}`,
      'Its download did not finish: fetch it again.',
    );
  }
  return { name, dtype, shape: sizes, offsetBytes: dataBytes + begin, byteLength: expected };
}

function integersOf(path: string, what: string, value: JsonValue, least: number, most: number): number[] {
  if (!Array.isArray(value) || value.length < least || value.length > most) {
    const wanted = least === most ? `${most} numbers` : `up to ${most} numbers`;
    throw invalid(path, `${what} is not a list of ${wanted}`);
  }
  return value.map((item) => {
    if (typeof item === 'number' && Number.isSafeInteger(item) && item >= 0) return item;
    throw invalid(path, `${what} holds ${quoted(String(item))}, not a whole number`);
  });
}

/** Tensors of no bytes overlap nothing. */
function refuseOverlaps(path: string, ordered: readonly SafetensorsTensor[]): void {
  let last: SafetensorsTensor | undefined;
  for (const tensor of ordered) {
    if (tensor.byteLength === 0) continue;
    if (last !== undefined && last.offsetBytes + last.byteLength > tensor.offsetBytes) {
      throw invalid(
        path,
        `tensor ${quoted(tensor.name)} at byte ${tensor.offsetBytes} overlaps tensor ${quoted(last.name)}`,
      );
    }
    last = tensor;
  }
}
