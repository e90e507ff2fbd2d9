/**
 * Writes checkpoint folders for tests: any safetensors file, and whole models made from a GGUF.
 *
 * The second goes the way back that converters came: value heads from tiled to grouped order, norms less 1 for Hugging
 * Face, A_log from -exp(A_log), gate and up of all experts in one tensor. With codes it also gives the GGUF back with the
 * weights that the codes stand for, so that a model can be compared with itself in the other format.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Gguf, type GgufTensor, readGguf } from '../../dist/model/gguf.js';
import { readHyperparameters } from '../../dist/model/hyperparameters.js';
import { loadCpu } from '../../dist/native.js';

export interface StoredSpec {
  readonly name: string;
  readonly dtype: string;
  /** The last dimension is contiguous. */
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** A whole safetensors file from a header (any text, or the entries of an object) and the bytes behind it. */
export function safetensors(header: string | object, data: Uint8Array = new Uint8Array()): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, data]);
}

/** `skew`: the bytes from a multiple of 64 to the first tensor's, if it matters; a header may end in spaces. */
export function safetensorsOf(tensors: readonly StoredSpec[], skew?: number): Buffer {
  let at = 0;
  const entries = tensors.map(({ name, dtype, shape, data }) => {
    const offsets = [at, at + data.length];
    at += data.length;
    return [name, { dtype, shape, data_offsets: offsets }] as const;
  });
  const header = JSON.stringify(Object.fromEntries(entries));
  const end = Buffer.byteLength(header) + 8;
  const spaces = skew === undefined ? 0 : (64 + skew - (end % 64)) % 64;
  return safetensors(header + ' '.repeat(spaces), Buffer.concat(tensors.map(({ data }) => data)));
}

export interface Quantization {
  readonly bits: number;
  readonly group: number;
}

/** Modules in every width and every group that fit them. */
export function mixture(module: string): Quantization | undefined {
  if (/layernorm|_norm|conv1d/.test(module)) return undefined;
  if (module.includes('switch_mlp.gate')) return { bits: 2, group: 128 };
  if (module.includes('switch_mlp.up')) return { bits: 3, group: 64 };
  if (module.includes('switch_mlp.down')) return { bits: 6, group: 32 };
  if (module.includes('self_attn')) return { bits: 5, group: 64 };
  if (module.includes('in_proj')) return { bits: 8, group: 128 };
  if (module.includes('shared_expert')) return { bits: 4, group: 32 };
  if (module.includes('out_proj')) return undefined;
  return { bits: 8, group: 32 };
}

export interface CheckpointOptions {
  readonly dialect: 'mlx' | 'hf';
  /** What a module is quantised to, by its name without the path before `layers`; undefined leaves it as it is. */
  readonly quantize?: (module: string) => Quantization | undefined;
  /** Of what is not quantised. */
  readonly dtype?: 'F32' | 'BF16';
  readonly shards?: number;
  /** Where the tensors of each file begin, in bytes beyond a multiple of 64. */
  readonly skew?: number;
  readonly config?: (config: Config) => void;
}

// biome-ignore lint/suspicious/noExplicitAny: tests change any field of it
export type Config = Record<string, any>;

const bytes = (values: Float32Array | Uint16Array): Uint8Array =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

const word = new Uint32Array(1);
const float = new Float32Array(word.buffer);

function bfloat(value: number): number {
  float[0] = value;
  const kept = word[0]! >>> 16;
  const rest = word[0]! & 0xffff;
  return rest > 0x8000 || (rest === 0x8000 && (kept & 1) === 1) ? kept + 1 : kept;
}

function fromBfloat(half: number): number {
  word[0] = half << 16;
  return float[0]!;
}

interface Codes {
  readonly codes: Uint8Array;
  readonly scales: Uint16Array;
  readonly biases: Uint16Array;
  /** What they stand for. */
  readonly values: Float32Array;
}

function affine(weights: Float32Array, { bits, group }: Quantization): Codes {
  const groups = weights.length / group;
  const codes = new Uint8Array((weights.length / 8) * bits);
  const scales = new Uint16Array(groups);
  const biases = new Uint16Array(groups);
  const values = new Float32Array(weights.length);
  const largest = 2 ** bits - 1;
  for (let g = 0; g < groups; g++) {
    const part = weights.subarray(g * group, (g + 1) * group);
    const [low, high] = [Math.min(...part), Math.max(...part)];
    scales[g] = bfloat((high - low) / largest || 1);
    biases[g] = bfloat(low);
    const [scale, bias] = [fromBfloat(scales[g]!), fromBfloat(biases[g]!)];
    for (let i = 0; i < group; i++) {
      const at = g * group + i;
      const code = Math.min(largest, Math.max(0, Math.round((part[i]! - bias) / scale)));
      values[at] = code * scale + bias;
      for (let bit = 0; bit < bits; bit++) {
        const place = at * bits + bit;
        codes[place >> 3] = codes[place >> 3]! | (((code >> bit) & 1) << (place & 7));
      }
    }
  }
  return { codes, scales, biases, values };
}

/** The checkpoint of a qwen35moe GGUF, and that GGUF in float32 with the weights that the checkpoint stands for. */
export function writeCheckpoint(ggufPath: string, folder: string, options: CheckpointOptions): Buffer {
  return new Writer(ggufPath, folder, options).write();
}

class Writer {
  private readonly gguf: Gguf;
  private readonly file: Buffer;
  private readonly folder: string;
  private readonly options: CheckpointOptions;
  private readonly stored: StoredSpec[] = [];
  private readonly modules: Config = {};
  private readonly grouped: readonly number[];
  private readonly keyWidth: number;
  private readonly headDim: number;

  constructor(ggufPath: string, folder: string, options: CheckpointOptions) {
    this.gguf = readGguf(ggufPath);
    this.file = readFileSync(ggufPath);
    this.folder = folder;
    this.options = options;
    const { deltaKeyHeads, deltaValueHeads, deltaHeadDim } = readHyperparameters(this.gguf);
    const repeat = deltaValueHeads / deltaKeyHeads;
    // Grouped head i is tiled head grouped[i].
    this.grouped = Array.from(
      { length: deltaValueHeads },
      (_, head) => (head % repeat) * deltaKeyHeads + Math.floor(head / repeat),
    );
    this.headDim = deltaHeadDim;
    this.keyWidth = deltaKeyHeads * deltaHeadDim;
  }

  write(): Buffer {
    const { dialect, shards = 1 } = this.options;
    for (const tensor of this.gguf.tensors.values()) this.put(tensor);
    mkdirSync(this.folder, { recursive: true });
    const names = Array.from({ length: shards }, (_, shard) =>
      shards === 1
        ? 'model.safetensors'
        : `model-${String(shard + 1).padStart(5, '0')}-of-${String(shards).padStart(5, '0')}.safetensors`,
    );
    const weightMap: Record<string, string> = {};
    for (const [shard, name] of names.entries()) {
      const part = this.stored.filter((_, index) => index % shards === shard);
      for (const tensor of part) weightMap[tensor.name] = name;
      writeFileSync(join(this.folder, name), safetensorsOf(part, this.options.skew));
    }
    if (shards > 1) this.json('model.safetensors.index.json', { weight_map: weightMap });
    const config = this.config(dialect);
    this.options.config?.(config);
    this.json('config.json', config);
    writeTokenizer(this.gguf, this.folder);
    return this.file;
  }

  private json(name: string, value: unknown): void {
    writeFileSync(join(this.folder, name), JSON.stringify(value));
  }

  private config(dialect: 'mlx' | 'hf'): Config {
    const h = readHyperparameters(this.gguf);
    const text: Config = {
      model_type: 'qwen3_5_moe_text',
      hidden_size: h.hidden,
      num_hidden_layers: h.layers,
      num_attention_heads: h.heads,
      num_key_value_heads: h.kvHeads,
      head_dim: h.headDim,
      linear_num_key_heads: h.deltaKeyHeads,
      linear_num_value_heads: h.deltaValueHeads,
      linear_key_head_dim: h.deltaHeadDim,
      linear_value_head_dim: h.deltaHeadDim,
      linear_conv_kernel_dim: h.convKernel,
      num_experts: h.experts,
      num_experts_per_tok: h.expertsPerToken,
      moe_intermediate_size: h.expertWidth,
      shared_expert_intermediate_size: h.sharedWidth,
      layer_types: Array.from(h.attentionLayers, (is) => (is === 1 ? 'full_attention' : 'linear_attention')),
      rms_norm_eps: Number(h.rmsEpsilon.toPrecision(6)),
      max_position_embeddings: h.contextLength,
      rope_parameters: {
        rope_type: 'default',
        rope_theta: h.ropeTheta,
        partial_rotary_factor: h.rotaryDims / h.headDim,
      },
    };
    if (dialect === 'hf' || this.options.quantize === undefined) {
      return { model_type: 'qwen3_5_moe', text_config: text };
    }
    const quantization = { group_size: 64, bits: 4, mode: 'affine', ...this.modules };
    return { model_type: 'qwen3_5_moe', text_config: text, quantization };
  }

  private floatsOf({ type, offsetBytes, byteLength }: GgufTensor): Float32Array {
    const values = new Float32Array((byteLength / type.blockBytes) * type.blockSize);
    loadCpu().dequantize(type.id, this.file.subarray(offsetBytes, offsetBytes + byteLength), values);
    return values;
  }

  private put(tensor: GgufTensor): void {
    const { dialect } = this.options;
    const layer = /^blk\.(\d+)\.(.+)$/.exec(tensor.name);
    const name = layer === null ? tensor.name : layer[2]!;
    const prefix = dialect === 'mlx' ? 'language_model.model.' : 'model.language_model.';
    const at = layer === null ? '' : `layers.${layer[1]}.`;
    const own = OWN_NAMES[name]!;
    const plain = this.floatsOf(tensor);
    const reordered = this.reorder(layer !== null && name, plain, tensor.shape, this.grouped);
    const shape = [...tensor.shape].reverse();
    if (name === 'ssm_a') {
      this.plain(
        `${prefix}${at}${own}`,
        shape,
        reordered.map((value) => Math.log(-value)),
        'F32',
      );
    } else if (name === 'ssm_dt.bias') this.plain(`${prefix}${at}${own}`, shape, reordered);
    else if (name === 'ssm_conv1d.weight') {
      const [channels, taps] = shape as [number, number];
      const full = dialect === 'mlx' ? [channels, taps, 1] : [channels, 1, taps];
      this.plain(`${prefix}${at}${own}.weight`, full, reordered);
    } else if (name.endsWith('norm.weight')) {
      const isShifted = dialect === 'hf' && name !== 'ssm_norm.weight';
      this.plain(`${prefix}${at}${own}.weight`, shape, isShifted ? reordered.map((v) => v - 1) : reordered);
    } else if (dialect === 'hf' && name.endsWith('_exps.weight'))
      this.putStacked(`${prefix}${at}`, name, tensor, plain);
    else {
      const head = dialect === 'mlx' ? 'language_model.lm_head' : 'lm_head';
      const module = name === 'output.weight' ? head : `${prefix}${at}${own}`;
      const matrix = name === 'ffn_gate_inp_shexp.weight' ? [1, ...shape] : shape;
      this.module(module, `${at}${own}`, matrix, reordered, tensor, layer !== null && name);
    }
  }

  /** Gate and up of every expert in one tensor, without `.weight`. */
  private putStacked(path: string, name: string, tensor: GgufTensor, plain: Float32Array): void {
    const [cols, rows, experts] = tensor.shape as [number, number, number];
    if (name === 'ffn_down_exps.weight')
      this.plain(`${path}mlp.experts.down_proj`, [experts, rows, cols], plain);
    if (name !== 'ffn_gate_exps.weight') return;
    const up = this.floatsOf(this.gguf.tensors.get(tensor.name.replace('gate_exps', 'up_exps'))!);
    const size = cols * rows;
    const both = new Float32Array(2 * size * experts);
    for (let expert = 0; expert < experts; expert++) {
      both.set(plain.subarray(expert * size, (expert + 1) * size), 2 * expert * size);
      both.set(up.subarray(expert * size, (expert + 1) * size), (2 * expert + 1) * size);
    }
    this.plain(`${path}mlp.experts.gate_up_proj`, [experts, 2 * rows, cols], both);
  }

  private plain(
    name: string,
    shape: readonly number[],
    values: Float32Array,
    dtype = this.options.dtype ?? 'F32',
  ): void {
    const data = dtype === 'F32' ? bytes(values) : bytes(Uint16Array.from(values, bfloat));
    this.stored.push({ name, dtype, shape, data });
  }

  private module(
    module: string,
    short: string,
    shape: readonly number[],
    values: Float32Array,
    tensor: GgufTensor,
    name: string | false,
  ): void {
    const quantization = this.options.quantize?.(short);
    if (quantization === undefined) {
      this.plain(`${module}.weight`, shape, values);
      return;
    }
    const { bits, group } = quantization;
    const made = affine(values, quantization);
    const rows = shape.slice(0, -1);
    const cols = shape.at(-1)!;
    const side = [...rows, cols / group];
    this.stored.push(
      { name: `${module}.weight`, dtype: 'U32', shape: [...rows, (cols * bits) / 32], data: made.codes },
      { name: `${module}.scales`, dtype: 'BF16', shape: side, data: bytes(made.scales) },
      { name: `${module}.biases`, dtype: 'BF16', shape: side, data: bytes(made.biases) },
    );
    this.modules[module] = { bits, group_size: group };
    // The GGUF must be of float32 to take them.
    const back = this.grouped.map((_, head) => this.grouped.indexOf(head));
    const tiled = this.reorder(name, made.values, tensor.shape, back);
    this.file.set(bytes(tiled), tensor.offsetBytes);
  }

  /** Value heads into another order: rows, or the columns of the output projection. */
  private reorder(
    name: string | false,
    values: Float32Array,
    shape: readonly number[],
    order: readonly number[],
  ): Float32Array {
    const rule = name === false ? undefined : HEAD_ROWS[name];
    if (rule === undefined) return values.slice();
    const [cols, rows = 1] = shape as [number, number?];
    const out = values.slice();
    const width = rule.perHead ? 1 : this.headDim;
    const first = rule.afterKeys ? 2 * this.keyWidth : 0;
    const put = (to: number, from: number, count: number): void =>
      out.set(values.subarray(from, from + count), to);
    for (const [to, from] of order.entries()) {
      if (rule.columns) {
        for (let row = 0; row < rows; row++) put(row * cols + to * width, row * cols + from * width, width);
      } else if (shape.length === 1) put(to, from, 1);
      else put((first + to * width) * cols, (first + from * width) * cols, width * cols);
    }
    return out;
  }
}

const OWN_NAMES: Readonly<Record<string, string>> = {
  'token_embd.weight': 'embed_tokens',
  'output.weight': 'lm_head',
  'output_norm.weight': 'norm',
  'attn_norm.weight': 'input_layernorm',
  'post_attention_norm.weight': 'post_attention_layernorm',
  'attn_q.weight': 'self_attn.q_proj',
  'attn_k.weight': 'self_attn.k_proj',
  'attn_v.weight': 'self_attn.v_proj',
  'attn_output.weight': 'self_attn.o_proj',
  'attn_q_norm.weight': 'self_attn.q_norm',
  'attn_k_norm.weight': 'self_attn.k_norm',
  'attn_qkv.weight': 'linear_attn.in_proj_qkv',
  'attn_gate.weight': 'linear_attn.in_proj_z',
  'ssm_beta.weight': 'linear_attn.in_proj_b',
  'ssm_alpha.weight': 'linear_attn.in_proj_a',
  'ssm_conv1d.weight': 'linear_attn.conv1d',
  ssm_a: 'linear_attn.A_log',
  'ssm_dt.bias': 'linear_attn.dt_bias',
  'ssm_norm.weight': 'linear_attn.norm',
  'ssm_out.weight': 'linear_attn.out_proj',
  'ffn_gate_inp.weight': 'mlp.gate',
  'ffn_gate_inp_shexp.weight': 'mlp.shared_expert_gate',
  'ffn_gate_shexp.weight': 'mlp.shared_expert.gate_proj',
  'ffn_up_shexp.weight': 'mlp.shared_expert.up_proj',
  'ffn_down_shexp.weight': 'mlp.shared_expert.down_proj',
  'ffn_gate_exps.weight': 'mlp.switch_mlp.gate_proj',
  'ffn_up_exps.weight': 'mlp.switch_mlp.up_proj',
  'ffn_down_exps.weight': 'mlp.switch_mlp.down_proj',
};

/** Where value heads stand in a tensor. */
const HEAD_ROWS: Readonly<Record<string, { perHead?: boolean; afterKeys?: boolean; columns?: boolean }>> = {
  'attn_qkv.weight': { afterKeys: true },
  'ssm_conv1d.weight': { afterKeys: true },
  'attn_gate.weight': {},
  'ssm_beta.weight': { perHead: true },
  'ssm_alpha.weight': { perHead: true },
  ssm_a: { perHead: true },
  'ssm_dt.bias': { perHead: true },
  'ssm_out.weight': { columns: true },
};

const QWEN35 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** tokenizer.json and tokenizer_config.json of a GGUF's vocabulary. */
export function writeTokenizer(gguf: Gguf, folder: string): void {
  const { metadata } = gguf;
  const tokens = metadata.plain('tokenizer.ggml.tokens') as string[];
  const types = metadata.plain('tokenizer.ggml.token_type') as number[];
  const entries = tokens.map((text, id) => ({ text, id, type: types[id] }));
  const tokenizer = {
    added_tokens: entries
      .filter(({ type }) => type === 3 || type === 4)
      .map(({ text, id, type }) => ({ id, content: text, special: type === 3 })),
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: QWEN35 }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, use_regex: false },
      ],
    },
    post_processor: null,
    model: {
      type: 'BPE',
      ignore_merges: false,
      vocab: Object.fromEntries(entries.filter(({ type }) => type === 1).map(({ text, id }) => [text, id])),
      merges: metadata.plain('tokenizer.ggml.merges'),
    },
  };
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer));
  const config = {
    eos_token: tokens[metadata.integer('tokenizer.ggml.eos_token_id', 0, tokens.length - 1)],
    chat_template: metadata.optionalString('tokenizer.chat_template'),
  };
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(config));
}
