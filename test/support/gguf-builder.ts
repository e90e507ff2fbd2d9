/**
 * Writes GGUF files for tests: any metadata, any tensors, and any field wrong on purpose.
 *
 * Every field that is written is remembered by name, so that a test can say "the number of dimensions of this tensor
 * is 5" instead of counting bytes.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import { GGML_TYPES, ggmlTypeNamed } from '../../dist/model/ggml-types.js';

const TYPE_IDS = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  u64: 10,
  i64: 11,
  f64: 12,
} as const;
const ARRAY_TYPE_ID = 9;

type ValueType = keyof typeof TYPE_IDS;
type Plain = number | bigint | boolean | string | Uint8Array;

export interface MetadataValue {
  readonly type: ValueType;
  readonly value: Plain | readonly Plain[];
}

const scalar =
  (type: ValueType) =>
  (value: Plain): MetadataValue => ({ type, value });

export const u8 = scalar('u8');
export const u16 = scalar('u16');
export const u32 = scalar('u32');
export const i32 = scalar('i32');
export const u64 = scalar('u64');
export const i64 = scalar('i64');
export const f32 = scalar('f32');
export const bool = scalar('bool');
/** A text, or bytes that need not be one. */
export const string = scalar('string');
export const array = (type: ValueType, value: readonly Plain[]): MetadataValue => ({ type, value });

export interface TensorSpec {
  readonly name: string;
  /** Name of a ggml type, or any number. */
  readonly type: string | number;
  readonly shape: readonly number[];
  /** Zeros where there are none. */
  readonly data?: Uint8Array;
}

export interface GgufSpec {
  /** A list where a key is to occur twice. */
  readonly metadata: Readonly<Record<string, MetadataValue>> | readonly (readonly [string, MetadataValue])[];
  readonly tensors?: readonly TensorSpec[];
  readonly alignment?: number;
}

interface Field {
  readonly offsetBytes: number;
  readonly type: ValueType;
}

export interface BuiltGguf {
  readonly bytes: Buffer;
  /** Where the header ends, before the padding. */
  readonly headerBytes: number;
  /** magic, version, tensors, keys, KEY.key, KEY.type, KEY.elements, KEY.length, KEY; TENSOR.name, .dims, .dim0, .type, .offset */
  readonly fields: ReadonlyMap<string, Field>;
  /** A copy with one fixed-size field replaced; for a string or a name, its length. */
  with(field: string, value: number | bigint): Buffer;
}

function encodeScalar(type: ValueType, value: Plain): Buffer {
  const out = Buffer.alloc(8);
  switch (type) {
    case 'u8':
    case 'bool':
      return out.subarray(0, out.writeUInt8(Number(value)));
    case 'i8':
      return out.subarray(0, out.writeInt8(Number(value)));
    case 'u16':
      return out.subarray(0, out.writeUInt16LE(Number(value)));
    case 'i16':
      return out.subarray(0, out.writeInt16LE(Number(value)));
    case 'u32':
      return out.subarray(0, out.writeUInt32LE(Number(value)));
    case 'i32':
      return out.subarray(0, out.writeInt32LE(Number(value)));
    case 'f32':
      return out.subarray(0, out.writeFloatLE(Number(value)));
    case 'f64':
      return out.subarray(0, out.writeDoubleLE(Number(value)));
    case 'u64':
      return out.subarray(0, out.writeBigUInt64LE(BigInt(value as number | bigint)));
    case 'i64':
      return out.subarray(0, out.writeBigInt64LE(BigInt(value as number | bigint)));
    case 'string': {
      const bytes = typeof value === 'string' ? Buffer.from(value) : Buffer.from(value as Uint8Array);
      out.writeBigUInt64LE(BigInt(bytes.length));
      return Buffer.concat([out, bytes]);
    }
  }
}

export function tensorByteLength(tensor: TensorSpec): number {
  const type = typeof tensor.type === 'string' ? ggmlTypeNamed(tensor.type) : GGML_TYPES.get(tensor.type);
  const values = tensor.shape.reduce((product, size) => product * size, 1);
  return type === undefined ? 0 : (values / type.blockSize) * type.blockBytes;
}

class Writer {
  readonly fields = new Map<string, Field>();
  private readonly pieces: Buffer[] = [];
  lengthBytes = 0;

  bytes(bytes: Buffer): void {
    this.pieces.push(bytes);
    this.lengthBytes += bytes.length;
  }

  put(field: string, type: ValueType, value: Plain): void {
    this.fields.set(field, { offsetBytes: this.lengthBytes, type: type === 'string' ? 'u64' : type });
    this.bytes(encodeScalar(type, value));
  }

  metadata(key: string, { type, value }: MetadataValue): void {
    this.put(`${key}.key`, 'string', key);
    if (!Array.isArray(value)) {
      this.put(`${key}.type`, 'u32', TYPE_IDS[type]);
      this.put(key, type, value as Plain);
      return;
    }
    this.put(`${key}.type`, 'u32', ARRAY_TYPE_ID);
    this.put(`${key}.elements`, 'u32', TYPE_IDS[type]);
    this.put(`${key}.length`, 'u64', value.length);
    if (value.length > 0) this.fields.set(key, { offsetBytes: this.lengthBytes, type: 'u64' });
    this.bytes(Buffer.concat(value.map((each: Plain) => encodeScalar(type, each))));
  }

  tensor(tensor: TensorSpec, offsetBytes: number): void {
    const { name, shape, type } = tensor;
    this.put(`${name}.name`, 'string', name);
    this.put(`${name}.dims`, 'u32', shape.length);
    for (const [axis, size] of shape.entries()) this.put(`${name}.dim${axis}`, 'u64', size);
    this.put(`${name}.type`, 'u32', typeof type === 'number' ? type : ggmlTypeNamed(type).id);
    this.put(`${name}.offset`, 'u64', offsetBytes);
  }

  pad(alignment: number): void {
    this.bytes(Buffer.alloc((alignment - (this.lengthBytes % alignment)) % alignment));
  }

  result(): Buffer {
    return Buffer.concat(this.pieces);
  }
}

const isList = (metadata: GgufSpec['metadata']): metadata is readonly (readonly [string, MetadataValue])[] =>
  Array.isArray(metadata);

export function buildGguf({ metadata, tensors = [], alignment = 32 }: GgufSpec): BuiltGguf {
  const entries = isList(metadata) ? metadata : Object.entries(metadata);
  const writer = new Writer();
  writer.fields.set('magic', { offsetBytes: 0, type: 'u32' });
  writer.bytes(Buffer.from('GGUF'));
  writer.put('version', 'u32', 3);
  writer.put('tensors', 'u64', tensors.length);
  writer.put('keys', 'u64', entries.length);
  for (const [key, value] of entries) writer.metadata(key, value);
  let offsetBytes = 0;
  for (const tensor of tensors) {
    writer.tensor(tensor, offsetBytes);
    offsetBytes += Math.ceil(tensorByteLength(tensor) / alignment) * alignment;
  }
  const headerBytes = writer.lengthBytes;
  for (const tensor of tensors) {
    writer.pad(alignment);
    writer.bytes(Buffer.from(tensor.data ?? Buffer.alloc(tensorByteLength(tensor))));
  }
  const bytes = writer.result();
  const { fields } = writer;
  return {
    bytes,
    headerBytes,
    fields,
    with(name, value) {
      const field = fields.get(name);
      if (field === undefined) throw new Error(`no field ${name} among ${[...fields.keys()].join(', ')}`);
      const changed = Buffer.from(bytes);
      encodeScalar(field.type, value).copy(changed, field.offsetBytes);
      return changed;
    },
  };
}

/** A folder that is removed after the test file, and a function that writes into it. */
export function temporaryFiles(): { folder: string; write: (name: string, bytes: Uint8Array) => string } {
  const folder = mkdtempSync(join(tmpdir(), 'moestream-model-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const write = (name: string, bytes: Uint8Array): string => {
    const path = join(folder, name);
    writeFileSync(path, bytes);
    return path;
  };
  return { folder, write };
}

/** A model's metadata and tensors, to be changed before they are written. */
export interface ModelSpec {
  readonly metadata: Record<string, MetadataValue>;
  readonly tensors: Map<string, TensorSpec>;
}

/** The small model's sizes; experts and most matrices are Q8_0, so that strides are not powers of two. */
export const SMALL = {
  layers: 4,
  hidden: 64,
  vocabulary: 300,
  heads: 4,
  kvHeads: 2,
  headDim: 32,
  deltaKeyHeads: 2,
  deltaValueHeads: 4,
  deltaHeadDim: 16,
  convKernel: 4,
  experts: 6,
  expertsPerToken: 2,
  expertWidth: 96,
  sharedWidth: 32,
} as const;

function commonMetadata(architecture: string): Record<string, MetadataValue> {
  const key = (name: string): string => `${architecture}.${name}`;
  return {
    'general.architecture': string(architecture),
    'general.name': string('small'),
    [key('block_count')]: u32(SMALL.layers),
    [key('context_length')]: u32(512),
    [key('embedding_length')]: u32(SMALL.hidden),
    [key('attention.head_count')]: u32(SMALL.heads),
    [key('attention.head_count_kv')]: u32(SMALL.kvHeads),
    [key('attention.key_length')]: u32(SMALL.headDim),
    [key('attention.value_length')]: u32(SMALL.headDim),
    [key('attention.layer_norm_rms_epsilon')]: f32(1e-6),
    [key('rope.freq_base')]: f32(1e6),
    [key('expert_count')]: u32(SMALL.experts),
    [key('expert_used_count')]: u32(SMALL.expertsPerToken),
    [key('expert_feed_forward_length')]: u32(SMALL.expertWidth),
  };
}

function hybridMetadata(architecture: string): Record<string, MetadataValue> {
  const key = (name: string): string => `${architecture}.${name}`;
  return {
    [key('rope.dimension_count')]: u32(8),
    [key('expert_shared_feed_forward_length')]: u32(SMALL.sharedWidth),
    [key('ssm.conv_kernel')]: u32(SMALL.convKernel),
    [key('ssm.state_size')]: u32(SMALL.deltaHeadDim),
    [key('ssm.group_count')]: u32(SMALL.deltaKeyHeads),
    [key('ssm.time_step_rank')]: u32(SMALL.deltaValueHeads),
    [key('ssm.inner_size')]: u32(SMALL.deltaValueHeads * SMALL.deltaHeadDim),
  };
}

type AddTensor = (name: string, type: string, ...shape: number[]) => void;

function addAttention(add: AddTensor, gated: boolean): void {
  const { hidden, heads, kvHeads, headDim } = SMALL;
  add('attn_q.weight', 'Q8_0', hidden, heads * headDim * (gated ? 2 : 1));
  add('attn_k.weight', 'Q8_0', hidden, kvHeads * headDim);
  add('attn_v.weight', 'Q8_0', hidden, kvHeads * headDim);
  add('attn_q_norm.weight', 'F32', headDim);
  add('attn_k_norm.weight', 'F32', headDim);
  add('attn_output.weight', 'Q8_0', heads * headDim, hidden);
}

function addDelta(add: AddTensor, joinedGates: boolean): void {
  const { hidden, deltaKeyHeads, deltaValueHeads, deltaHeadDim, convKernel } = SMALL;
  const valueRows = deltaValueHeads * deltaHeadDim;
  const channels = 2 * deltaKeyHeads * deltaHeadDim + valueRows;
  add('attn_qkv.weight', 'Q8_0', hidden, channels);
  add('attn_gate.weight', 'Q8_0', hidden, valueRows);
  if (joinedGates) add('ssm_ba.weight', 'Q8_0', hidden, 2 * deltaValueHeads);
  else {
    add('ssm_beta.weight', 'Q8_0', hidden, deltaValueHeads);
    add('ssm_alpha.weight', 'Q8_0', hidden, deltaValueHeads);
  }
  add('ssm_conv1d.weight', 'F32', convKernel, channels);
  add('ssm_a', 'F32', deltaValueHeads);
  add('ssm_dt.bias', 'F32', deltaValueHeads);
  add('ssm_norm.weight', 'F32', deltaHeadDim);
  add('ssm_out.weight', 'Q8_0', valueRows, hidden);
}

/** A complete small model of an architecture; its weights are zeros. */
export function smallModel(architecture: 'qwen35moe' | 'qwen3next' | 'qwen3moe'): ModelSpec {
  const hybrid = architecture !== 'qwen3moe';
  const tensors = new Map<string, TensorSpec>();
  const { hidden, vocabulary, experts, expertWidth, sharedWidth } = SMALL;
  const adder =
    (prefix: string): AddTensor =>
    (name, type, ...shape) =>
      tensors.set(prefix + name, { name: prefix + name, type, shape });
  const addGlobal = adder('');
  addGlobal('token_embd.weight', 'Q8_0', hidden, vocabulary);
  addGlobal('output_norm.weight', 'F32', hidden);
  addGlobal('output.weight', 'Q8_0', hidden, vocabulary);
  for (let layer = 0; layer < SMALL.layers; layer++) {
    const add = adder(`blk.${layer}.`);
    add('attn_norm.weight', 'F32', hidden);
    if (!hybrid || layer % 4 === 3) addAttention(add, hybrid);
    else addDelta(add, architecture === 'qwen3next');
    add(hybrid ? 'post_attention_norm.weight' : 'ffn_norm.weight', 'F32', hidden);
    add('ffn_gate_inp.weight', 'F32', hidden, experts);
    add('ffn_gate_exps.weight', 'Q8_0', hidden, expertWidth, experts);
    add('ffn_up_exps.weight', 'Q8_0', hidden, expertWidth, experts);
    add('ffn_down_exps.weight', 'Q8_0', expertWidth, hidden, experts);
    if (!hybrid) continue;
    add('ffn_gate_inp_shexp.weight', 'F32', hidden);
    add('ffn_gate_shexp.weight', 'Q8_0', hidden, sharedWidth);
    add('ffn_up_shexp.weight', 'Q8_0', hidden, sharedWidth);
    add('ffn_down_shexp.weight', 'Q8_0', sharedWidth, hidden);
  }
  const metadata = { ...commonMetadata(architecture), ...(hybrid ? hybridMetadata(architecture) : {}) };
  return { metadata, tensors };
}

export function buildModel({ metadata, tensors }: ModelSpec): BuiltGguf {
  return buildGguf({ metadata, tensors: [...tensors.values()] });
}

/** GPT-2's byte alphabet, in the order of the bytes. */
export const BYTE_CHARACTERS: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCodePoint(printable ? byte : next++);
  });
})();

export interface VocabularySpec {
  readonly tokens: readonly (string | Uint8Array)[];
  readonly merges: readonly string[];
  /** ggml token types; normal where there are none. */
  readonly types?: readonly number[];
  readonly pre?: string;
  readonly more?: Readonly<Record<string, MetadataValue>>;
}

/** The metadata of a tokenizer. */
export function vocabularyMetadata(spec: VocabularySpec): Record<string, MetadataValue> {
  return {
    'tokenizer.ggml.model': string('gpt2'),
    'tokenizer.ggml.pre': string(spec.pre ?? 'qwen35'),
    'tokenizer.ggml.tokens': array('string', spec.tokens),
    ...(spec.types === undefined ? {} : { 'tokenizer.ggml.token_type': array('i32', spec.types) }),
    'tokenizer.ggml.merges': array('string', spec.merges),
    ...spec.more,
  };
}

/**
 * All bytes and all pairs of bytes, so that wherever a text is cut before BPE shows in its ids. Special tokens follow.
 */
export function pairVocabulary(
  pre: string,
  specials: readonly (readonly [text: string, type: number])[] = [],
): VocabularySpec {
  const tokens: string[] = [...BYTE_CHARACTERS];
  const merges: string[] = [];
  for (const first of BYTE_CHARACTERS) {
    for (const second of BYTE_CHARACTERS) {
      tokens.push(first + second);
      merges.push(`${first} ${second}`);
    }
  }
  const types = [...tokens.map(() => 1), ...specials.map(([, type]) => type)];
  return { tokens: [...tokens, ...specials.map(([text]) => text)], merges, types, pre };
}
