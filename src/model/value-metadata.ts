/**
 * Metadata that stands in JSON files instead of a GGUF header: values by GGUF's keys, each with where it came from.
 *
 * Messages name the file and the field that a user can look up, never the key it was translated to. Invariant: as of
 * GgufMetadata, a getter returns a value of the asked type within its bounds or throws MODEL_INVALID.
 */
import { MoestreamError } from '../errors.ts';
import { quoted } from './header-reader.ts';
import type { Metadata, TextList } from './model-source.ts';

export interface NamedValue {
  /** Anything a JSON file held, or texts. */
  readonly value: unknown;
  readonly path: string;
  /** What the file calls it, such as `text_config.hidden_size`. */
  readonly field: string;
}

export type NamedValues = ReadonlyMap<string, NamedValue>;

export class ValueMetadata implements Metadata {
  readonly #values: Map<string, NamedValue>;
  readonly #home: Omit<NamedValue, 'value'>;
  readonly #fieldOf: (key: string) => string;
  #loadTokenizer: (() => NamedValues) | undefined;

  /**
   * `path` and `fieldOf` name what is not there. The tokenizer's values cost a second, so `loadTokenizer` is called when
   * the first of its keys is asked for.
   */
  constructor(
    path: string,
    values: NamedValues,
    fieldOf: (key: string) => string,
    loadTokenizer: () => NamedValues,
  ) {
    this.#values = new Map(values);
    this.#home = { path, field: '' };
    this.#fieldOf = fieldOf;
    this.#loadTokenizer = loadTokenizer;
  }

  has(key: string): boolean {
    return this.#find(key) !== undefined;
  }

  isArray(key: string): boolean {
    return Array.isArray(this.#find(key)?.value);
  }

  invalid(key: string, problem: string): MoestreamError {
    // `key` may have an index behind it.
    const name = key.replace(/\[\d+\]$/, '');
    const { path, field } = this.#values.get(name) ?? { ...this.#home, field: this.#fieldOf(name) };
    return new MoestreamError(
      'MODEL_INVALID',
      `${path}: ${quoted(`${field}${key.slice(name.length)}`)} ${problem}`,
    );
  }

  integer(key: string, min: number, max: number): number {
    return this.#there(key, this.optionalInteger(key, min, max));
  }

  optionalInteger(key: string, min: number, max: number): number | undefined {
    const value = this.optionalNumber(key, min, max);
    if (value !== undefined && !Number.isSafeInteger(value))
      throw this.invalid(key, `is ${value}, not an integer`);
    return value;
  }

  number(key: string, min: number, max: number): number {
    return this.#there(key, this.optionalNumber(key, min, max));
  }

  optionalNumber(key: string, min: number, max: number): number | undefined {
    const value = this.#find(key)?.value;
    return value === undefined ? undefined : this.#bounded(key, value, min, max);
  }

  optionalBoolean(key: string): boolean | undefined {
    const value = this.#find(key)?.value;
    if (value === undefined || typeof value === 'boolean') return value;
    throw this.invalid(key, 'is neither true nor false');
  }

  string(key: string): string {
    return this.#there(key, this.optionalString(key));
  }

  optionalString(key: string): string | undefined {
    const value = this.#find(key)?.value;
    if (value === undefined || typeof value === 'string') return value;
    throw this.invalid(key, 'is not a text');
  }

  strings(key: string): TextList {
    const value = this.#there(key, this.#find(key)?.value);
    if (value instanceof Texts) return value;
    throw this.invalid(key, 'is not a list of texts');
  }

  optionalIntegers(key: string, min: number, max: number): number[] | undefined {
    const value = this.#find(key)?.value;
    if (value === undefined) return undefined;
    if (!Array.isArray(value)) throw this.invalid(key, 'is not a list');
    return value.map((item, index) => {
      const number = this.#bounded(`${key}[${index}]`, item, min, max);
      if (Number.isSafeInteger(number)) return number;
      throw this.invalid(`${key}[${index}]`, `is ${number}, not an integer`);
    });
  }

  #find(key: string): NamedValue | undefined {
    if (this.#loadTokenizer !== undefined && key.startsWith('tokenizer.')) {
      const load = this.#loadTokenizer;
      this.#loadTokenizer = undefined;
      for (const [name, value] of load()) this.#values.set(name, value);
    }
    return this.#values.get(key);
  }

  #there<T>(key: string, value: T | undefined): T {
    if (value === undefined) throw this.invalid(key, 'is missing');
    return value;
  }

  #bounded(key: string, value: unknown, min: number, max: number): number {
    if (typeof value !== 'number') throw this.invalid(key, 'is not a number');
    if (value >= min && value <= max) return value;
    throw this.invalid(key, `is ${value}, it must be between ${min} and ${max}`);
  }
}

/** Texts in one buffer. */
export class Texts implements TextList {
  readonly length: number;
  readonly #bytes: Buffer;
  /** (length + 1) */
  readonly #begins: Uint32Array;

  constructor(texts: readonly string[]) {
    this.length = texts.length;
    this.#begins = new Uint32Array(texts.length + 1);
    const encoded = texts.map((text) => Buffer.from(text));
    let at = 0;
    for (const [index, bytes] of encoded.entries()) {
      at += bytes.length;
      this.#begins[index + 1] = at;
    }
    this.#bytes = Buffer.concat(encoded, at);
  }

  bytesAt(index: number): Uint8Array {
    return this.#bytes.subarray(this.#begins[index]!, this.#begins[index + 1]!);
  }

  latin1At(index: number): string {
    return this.#bytes.toString('latin1', this.#begins[index]!, this.#begins[index + 1]!);
  }

  at(index: number): string | undefined {
    return this.#bytes.toString('utf8', this.#begins[index]!, this.#begins[index + 1]!);
  }
}
