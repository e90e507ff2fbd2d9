/**
 * Encodes the header of a GGUF v3 file: magic, metadata, tensor directory.
 *
 * Why a growing buffer: the vocabulary of a 397B model makes a header of several megabytes from half a million small
 * values, too many for a list of buffers. Invariant: what `encodeHeader` returns ends at a multiple of ALIGNMENT, where
 * the data section begins, and tensor offsets count from there.
 */
import type { GgmlType } from '#dist/model/ggml-types.js';

/** The format's default: tensors begin at multiples of it. */
export const ALIGNMENT = 32;

const VERSION = 3;
const TYPE_IDS = { u16: 2, u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const;

type NumberType = 'u16' | 'u32' | 'i32' | 'f32';

export type MetadataEntry =
  | { readonly key: string; readonly type: NumberType; readonly value: number }
  | { readonly key: string; readonly type: 'bool'; readonly value: boolean }
  | { readonly key: string; readonly type: 'string'; readonly value: string }
  | { readonly key: string; readonly type: 'strings'; readonly value: readonly string[] }
  | { readonly key: string; readonly type: 'integers'; readonly value: readonly number[] };

export interface DirectoryEntry {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: GgmlType;
  /** From the beginning of the data section. */
  readonly offsetBytes: number;
}

export function aligned(byteCount: number): number {
  return Math.ceil(byteCount / ALIGNMENT) * ALIGNMENT;
}

const FIRST_CAPACITY_BYTES = 1 << 16;

class ByteWriter {
  #buffer = Buffer.alloc(FIRST_CAPACITY_BYTES);
  #lengthBytes = 0;

  /** Takes the next bytes; where they begin in `buffer`. */
  #take(byteLength: number): number {
    const start = this.#lengthBytes;
    this.#lengthBytes += byteLength;
    if (this.#lengthBytes > this.#buffer.length) {
      const grown = Buffer.alloc(Math.max(2 * this.#buffer.length, this.#lengthBytes));
      this.#buffer.copy(grown, 0, 0, start);
      this.#buffer = grown;
    }
    return start;
  }

  number(type: NumberType, value: number): void {
    const start = this.#take(type === 'u16' ? 2 : 4);
    if (type === 'u16') this.#buffer.writeUInt16LE(value, start);
    else if (type === 'u32') this.#buffer.writeUInt32LE(value, start);
    else if (type === 'i32') this.#buffer.writeInt32LE(value, start);
    else this.#buffer.writeFloatLE(value, start);
  }

  u32(value: number): void {
    this.number('u32', value);
  }

  u64(value: number): void {
    const start = this.#take(8);
    this.#buffer.writeBigUInt64LE(BigInt(value), start);
  }

  boolean(value: boolean): void {
    const start = this.#take(1);
    this.#buffer[start] = value ? 1 : 0;
  }

  text(value: string): void {
    const byteLength = Buffer.byteLength(value);
    this.u64(byteLength);
    const start = this.#take(byteLength);
    this.#buffer.write(value, start);
  }

  finish(): Buffer {
    this.#take(aligned(this.#lengthBytes) - this.#lengthBytes);
    return this.#buffer.subarray(0, this.#lengthBytes);
  }
}

function writeArrayHead(writer: ByteWriter, elementTypeId: number, count: number): void {
  writer.u32(TYPE_IDS.array);
  writer.u32(elementTypeId);
  writer.u64(count);
}

function writeEntry(writer: ByteWriter, entry: MetadataEntry): void {
  writer.text(entry.key);
  if (entry.type === 'strings') {
    writeArrayHead(writer, TYPE_IDS.string, entry.value.length);
    for (const text of entry.value) writer.text(text);
    return;
  }
  if (entry.type === 'integers') {
    writeArrayHead(writer, TYPE_IDS.i32, entry.value.length);
    for (const value of entry.value) writer.number('i32', value);
    return;
  }
  writer.u32(TYPE_IDS[entry.type]);
  if (entry.type === 'string') writer.text(entry.value);
  else if (entry.type === 'bool') writer.boolean(entry.value);
  else writer.number(entry.type, entry.value);
}

export function encodeHeader(
  metadata: readonly MetadataEntry[],
  directory: readonly DirectoryEntry[],
): Buffer {
  const writer = new ByteWriter();
  writer.u32(Buffer.from('GGUF').readUInt32LE());
  writer.u32(VERSION);
  writer.u64(directory.length);
  writer.u64(metadata.length);
  for (const entry of metadata) writeEntry(writer, entry);
  for (const tensor of directory) {
    writer.text(tensor.name);
    writer.u32(tensor.shape.length);
    for (const size of tensor.shape) writer.u64(size);
    writer.u32(tensor.type.id);
    writer.u64(tensor.offsetBytes);
  }
  return writer.finish();
}
