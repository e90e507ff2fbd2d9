/**
 * The key-value part of a GGUF header: what a key holds, read by type, refused by name.
 *
 * Why: 248,320 token texts as JavaScript strings cost some 25 MB and a noticeable pause, and most callers want none of
 * them. So arrays stay as bytes in the header buffer and are decoded one element at a time.
 * Invariant: every getter either returns a value of the asked type or throws MODEL_INVALID naming file, key and value.
 */
import { MoestreamError } from '../errors.ts';
import { decodeUtf8, type HeaderReader, quoted } from './header-reader.ts';
import type { Metadata, TextList } from './model-source.ts';

/** Names and sizes of the value types of the format, by id. Strings (8) and arrays (9) have no fixed size. */
const VALUE_TYPES = [
  ['u8', 1],
  ['i8', 1],
  ['u16', 2],
  ['i16', 2],
  ['u32', 4],
  ['i32', 4],
  ['f32', 4],
  ['bool', 1],
  ['string', 0],
  ['array', 0],
  ['u64', 8],
  ['i64', 8],
  ['f64', 8],
] as const;

export type GgufValueType = (typeof VALUE_TYPES)[number][0];

const KEY_BYTES_MAX = 65535;
const STRING_BYTES_MAX = 1 << 24;
/** The largest vocabulary in use has 262,144 entries; an array beyond this is a mistake or an attack. */
const ARRAY_LENGTH_MAX = 1 << 24;

interface Value {
  readonly type: GgufValueType;
  /** Elements: 1 except for arrays. */
  readonly count: number;
  readonly isArray: boolean;
  readonly offsetBytes: number;
  /** Only for strings: element i is [ends[i] - lengths[i], ends[i]), with its 8-byte length before it. */
  readonly ends?: Uint32Array;
}

/** A value with where its whole pair, key and types included, lies in the header. */
interface Pair extends Value {
  readonly pairBeginBytes: number;
  readonly pairEndBytes: number;
}

/** The texts of a string array, decoded when asked for. */
export class GgufStrings implements TextList {
  readonly length: number;
  readonly #header: Buffer;
  readonly #firstOffsetBytes: number;
  readonly #ends: Uint32Array;

  constructor(header: Buffer, firstOffsetBytes: number, ends: Uint32Array) {
    this.#header = header;
    this.#firstOffsetBytes = firstOffsetBytes;
    this.#ends = ends;
    this.length = ends.length;
  }

  /** The bytes of text `index`, as a view. */
  bytesAt(index: number): Uint8Array {
    const start = (index === 0 ? this.#firstOffsetBytes : this.#ends[index - 1]!) + 8;
    return this.#header.subarray(start, this.#ends[index]!);
  }

  /** The bytes of text `index` as a string of one character each: quick to make, for comparing only. */
  latin1At(index: number): string {
    const start = (index === 0 ? this.#firstOffsetBytes : this.#ends[index - 1]!) + 8;
    return this.#header.toString('latin1', start, this.#ends[index]!);
  }

  /** Text `index`, or undefined when its bytes are not UTF-8. */
  at(index: number): string | undefined {
    return decodeUtf8(this.bytesAt(index));
  }
}

export class GgufMetadata implements Metadata {
  readonly #path: string;
  readonly #header: Buffer;
  readonly #values: ReadonlyMap<string, Pair>;

  constructor(path: string, header: Buffer, values: ReadonlyMap<string, Pair>) {
    this.#path = path;
    this.#header = header;
    this.#values = values;
  }

  get keys(): string[] {
    return [...this.#values.keys()];
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  /** Key, types and value of `key` as they stand in the file, to write them into another one. */
  pairBytes(key: string): Uint8Array {
    const { pairBeginBytes, pairEndBytes } = this.#values.get(key)!;
    return this.#header.subarray(pairBeginBytes, pairEndBytes);
  }

  isArray(key: string): boolean {
    return this.#values.get(key)?.isArray === true;
  }

  /** Elements of the array under `key`, 1 for a scalar, 0 when there is no such key. */
  count(key: string): number {
    return this.#values.get(key)?.count ?? 0;
  }

  invalid(key: string, problem: string): MoestreamError {
    return new MoestreamError('MODEL_INVALID', `${this.#path}: metadata ${quoted(key)} ${problem}`);
  }

  /** A whole number of any integer type, between the bounds. */
  integer(key: string, min: number, max: number): number {
    const value = this.optionalInteger(key, min, max);
    if (value === undefined) throw this.invalid(key, 'is missing');
    return value;
  }

  optionalInteger(key: string, min: number, max: number): number | undefined {
    const value = this.#scalar(key);
    if (value === undefined) return undefined;
    const number = this.#number(value, 0);
    if (typeof number === 'boolean' || !isIntegerType(value.type))
      throw this.invalid(key, `is ${value.type}, not an integer`);
    return this.#bounded(key, number, min, max);
  }

  number(key: string, min: number, max: number): number {
    const value = this.optionalNumber(key, min, max);
    if (value === undefined) throw this.invalid(key, 'is missing');
    return value;
  }

  /** A finite number of any numeric type, between the bounds. */
  optionalNumber(key: string, min: number, max: number): number | undefined {
    const value = this.#scalar(key);
    if (value === undefined) return undefined;
    const number = this.#number(value, 0);
    if (typeof number === 'boolean') throw this.invalid(key, `is ${value.type}, not a number`);
    return this.#bounded(key, number, min, max);
  }

  optionalBoolean(key: string): boolean | undefined {
    const value = this.#scalar(key);
    if (value === undefined) return undefined;
    const truth = this.#number(value, 0);
    if (typeof truth !== 'boolean') throw this.invalid(key, `is ${value.type}, not bool`);
    return truth;
  }

  string(key: string): string {
    const text = this.optionalString(key);
    if (text === undefined) throw this.invalid(key, 'is missing');
    return text;
  }

  optionalString(key: string): string | undefined {
    const value = this.#scalar(key);
    if (value === undefined) return undefined;
    if (value.ends === undefined) throw this.invalid(key, `is ${value.type}, not a string`);
    const text = new GgufStrings(this.#header, value.offsetBytes, value.ends).at(0);
    if (text === undefined) throw this.invalid(key, 'is not UTF-8');
    return text;
  }

  /** An array of texts; undefined when there is no such key. */
  optionalStrings(key: string): GgufStrings | undefined {
    const value = this.#array(key);
    if (value === undefined) return undefined;
    if (value.ends === undefined) throw this.invalid(key, `is an array of ${value.type}, not of strings`);
    return new GgufStrings(this.#header, value.offsetBytes, value.ends);
  }

  strings(key: string): GgufStrings {
    const texts = this.optionalStrings(key);
    if (texts === undefined) throw this.invalid(key, 'is missing');
    return texts;
  }

  /** An array of integers or booleans (as 0 and 1), each between the bounds. */
  optionalIntegers(key: string, min: number, max: number): number[] | undefined {
    const value = this.#array(key);
    if (value === undefined) return undefined;
    if (!isIntegerType(value.type) && value.type !== 'bool') {
      throw this.invalid(key, `is an array of ${value.type}, not of integers`);
    }
    const numbers = new Array<number>(value.count);
    for (let index = 0; index < value.count; index++) {
      numbers[index] = this.#bounded(`${key}[${index}]`, Number(this.#number(value, index)), min, max);
    }
    return numbers;
  }

  /** Any value as plain JavaScript, for printing and comparing: numbers, booleans, strings, arrays of them. */
  plain(key: string): unknown {
    const value = this.#values.get(key);
    if (value === undefined) return undefined;
    const texts = value.ends && new GgufStrings(this.#header, value.offsetBytes, value.ends);
    const element = (index: number): unknown => (texts ? texts.at(index) : this.#number(value, index));
    return value.isArray ? Array.from({ length: value.count }, (_, index) => element(index)) : element(0);
  }

  #scalar(key: string): Value | undefined {
    const value = this.#values.get(key);
    if (value?.isArray) throw this.invalid(key, 'is an array, not a single value');
    return value;
  }

  #array(key: string): Value | undefined {
    const value = this.#values.get(key);
    if (value !== undefined && !value.isArray)
      throw this.invalid(key, `is a single ${value.type}, not an array`);
    return value;
  }

  #bounded(key: string, value: number, min: number, max: number): number {
    // Written so that NaN, which compares false to everything, is refused too.
    if (value >= min && value <= max) return value;
    throw this.invalid(key, `is ${value}, it must be between ${min} and ${max}`);
  }

  #number(value: Value, index: number): number | boolean {
    const { offsetBytes: start, type } = value;
    const header = this.#header;
    switch (type) {
      case 'u8':
        return header.readUInt8(start + index);
      case 'i8':
        return header.readInt8(start + index);
      case 'bool':
        return header.readUInt8(start + index) !== 0;
      case 'u16':
        return header.readUInt16LE(start + index * 2);
      case 'i16':
        return header.readInt16LE(start + index * 2);
      case 'u32':
        return header.readUInt32LE(start + index * 4);
      case 'i32':
        return header.readInt32LE(start + index * 4);
      case 'f32':
        return header.readFloatLE(start + index * 4);
      case 'u64':
        return Number(header.readBigUInt64LE(start + index * 8));
      case 'i64':
        return Number(header.readBigInt64LE(start + index * 8));
      case 'f64':
        return header.readDoubleLE(start + index * 8);
      default:
        return Number.NaN; // a string asked for as a number: the bounds refuse it
    }
  }
}

function isIntegerType(type: GgufValueType): boolean {
  return type !== 'f32' && type !== 'f64' && type !== 'bool' && type !== 'string' && type !== 'array';
}

function readStrings(reader: HeaderReader, count: number, what: string): Uint32Array {
  // Every string takes at least its 8-byte length, so a count beyond that is refused before it is believed.
  if (count > reader.remainingBytes / 8)
    throw reader.invalid(`${what} claims ${count} strings, more than the file holds`);
  const ends = new Uint32Array(count);
  for (let index = 0; index < count; index++) {
    const byteLength = reader.u64(what);
    if (byteLength > STRING_BYTES_MAX) {
      throw reader.invalid(`${what} has a string of ${byteLength} bytes, the limit is ${STRING_BYTES_MAX}`);
    }
    reader.take(byteLength, what);
    ends[index] = reader.positionBytes;
  }
  return ends;
}

function valueType(reader: HeaderReader, what: string): (typeof VALUE_TYPES)[number] {
  const id = reader.u32(`the type of ${what}`);
  const type = VALUE_TYPES[id];
  if (type === undefined)
    throw reader.invalid(`${what} has value type ${id}, which the format does not define`);
  return type;
}

function checkBooleans(reader: HeaderReader, offsetBytes: number, count: number, what: string): void {
  const header = reader.header();
  for (let index = 0; index < count; index++) {
    const byte = header[offsetBytes + index]!;
    if (byte > 1) throw reader.invalid(`${what} is the boolean ${byte}, which is neither 0 nor 1`);
  }
}

function readValue(reader: HeaderReader, what: string): Value {
  let [type, bytes] = valueType(reader, what);
  const isArray = type === 'array';
  let count = 1;
  if (isArray) {
    [type, bytes] = valueType(reader, `the elements of ${what}`);
    if (type === 'array') throw reader.invalid(`${what} is an array of arrays, which is not supported`);
    count = reader.u64(`the length of ${what}`);
    if (count > ARRAY_LENGTH_MAX)
      throw reader.invalid(`${what} claims ${count} elements, the limit is ${ARRAY_LENGTH_MAX}`);
  }
  const offsetBytes = reader.positionBytes;
  if (type === 'string') {
    return { type, count, isArray, offsetBytes, ends: readStrings(reader, count, what) };
  }
  reader.take(count * bytes, what);
  if (type === 'bool') checkBooleans(reader, offsetBytes, count, what);
  return { type, count, isArray, offsetBytes };
}

/** Reads `count` key-value pairs. */
export function readValues(reader: HeaderReader, count: number): Map<string, Pair> {
  const values = new Map<string, Pair>();
  for (let index = 0; index < count; index++) {
    const pairBeginBytes = reader.positionBytes;
    const key = reader.string(KEY_BYTES_MAX, `metadata key ${index}`);
    if (key.length === 0) throw reader.invalid(`metadata key ${index} is empty`);
    if (values.has(key)) throw reader.invalid(`metadata key ${quoted(key)} occurs twice`);
    const value = readValue(reader, `metadata ${quoted(key)}`);
    values.set(key, { ...value, pairBeginBytes, pairEndBytes: reader.positionBytes });
  }
  return values;
}
