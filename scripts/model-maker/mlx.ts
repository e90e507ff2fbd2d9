/**
 * Random checkpoints as MLX publishes them: a folder of safetensors with affine codes, config.json and tokenizer.json.
 *
 * Names, order, shapes and types are those of mlx-community's Qwen3.5 conversions: experts stacked per layer, router and
 * shared expert's gate in 8 bits, norms bfloat16, A_log float32, groups of 64. Invariant: as of a GGUF made here, the same
 * seed makes the same bytes, no two experts begin alike, and values have the deviation that tensors.ts asks for. The number
 * behind it: an expert of 397b in 4 bits has 3 x (2,097,152 + 131,072 + 131,072) = 7,077,888 bytes.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { affineBytes, affineType } from '#dist/model/affine-types.js';
import type { GgmlType } from '#dist/model/ggml-types.js';
import { randomFactors } from './affine.ts';
import { MakeModelError } from './error.ts';
import { toBfloat } from './half.ts';
import { diskError } from './output-file.ts';
import { inRuns, type OutputPlan } from './outputs.ts';
import { Random } from './random.ts';
import { isAttentionLayer, type ModelShape, type Preset } from './shapes.ts';
import { modelTensors, type TensorSpec } from './tensors.ts';
import { CHAT_TEMPLATE, tokenizerTables } from './tokenizer.ts';

export interface MlxOptions {
  /** Bits of a code: 2, 3, 4, 5, 6 or 8. Default 4. */
  readonly bits?: number | undefined;
  /** Of the routed experts. Default: as the rest. */
  readonly expertBits?: number | undefined;
  readonly splitFiles?: number | undefined;
  readonly seed?: number | undefined;
}

interface MlxTensor {
  readonly name: string;
  readonly dtype: string;
  /** The last dimension is contiguous. */
  readonly shape: readonly number[];
  readonly byteLength: number;
  pieces(): Iterable<Uint8Array>;
}

const GROUP = 64;
const ROUTER_BITS = 8;
const SPLIT_FILES_MAX = 1024;
/** As in weights.ts: what is larger is copied together from stretches of a pool, far faster than it could be made. */
const POOL_BYTES = 4 << 20;
const STRETCH_BYTES = 256 << 10;
const DISTINCT_BYTES = 64;
/** Scales in a pool; more than a stretch has. */
const FACTOR_GROUPS = 1 << 18;

type Factors = ReturnType<typeof randomFactors>;

const PATH = 'language_model.model.';

/** By GGUF's name without `blk.N.`. */
const LAYER_NAMES: Readonly<Record<string, string>> = {
  'attn_norm.weight': 'input_layernorm.weight',
  'post_attention_norm.weight': 'post_attention_layernorm.weight',
  'attn_q.weight': 'self_attn.q_proj',
  'attn_k.weight': 'self_attn.k_proj',
  'attn_v.weight': 'self_attn.v_proj',
  'attn_output.weight': 'self_attn.o_proj',
  'attn_q_norm.weight': 'self_attn.q_norm.weight',
  'attn_k_norm.weight': 'self_attn.k_norm.weight',
  'attn_qkv.weight': 'linear_attn.in_proj_qkv',
  'attn_gate.weight': 'linear_attn.in_proj_z',
  'ssm_beta.weight': 'linear_attn.in_proj_b',
  'ssm_alpha.weight': 'linear_attn.in_proj_a',
  'ssm_conv1d.weight': 'linear_attn.conv1d.weight',
  ssm_a: 'linear_attn.A_log',
  'ssm_dt.bias': 'linear_attn.dt_bias',
  'ssm_norm.weight': 'linear_attn.norm.weight',
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

const MODEL_NAMES: Readonly<Record<string, string>> = {
  'token_embd.weight': `${PATH}embed_tokens`,
  'output.weight': 'language_model.lm_head',
  'output_norm.weight': `${PATH}norm.weight`,
};

function mlxName(gguf: string): string {
  const layer = /^blk\.(\d+)\.(.+)$/.exec(gguf);
  return layer === null ? MODEL_NAMES[gguf]! : `${PATH}layers.${layer[1]}.${LAYER_NAMES[layer[2]!]!}`;
}

function typeOf(bits: number): GgmlType {
  const type = affineType(bits, GROUP);
  if (type !== undefined) return type;
  throw new MakeModelError('usage', `${bits} bits are asked for; MLX has 2, 3, 4, 5, 6 and 8`);
}

class MlxMaker {
  readonly quantization: Record<string, unknown>;
  private readonly seed: number;
  private readonly bits: number;
  private readonly expertBits: number;
  private codes: Uint8Array | undefined;
  private readonly factors = new Map<string, Factors>();

  constructor(options: MlxOptions) {
    this.seed = options.seed ?? 1;
    this.bits = options.bits ?? 4;
    this.expertBits = options.expertBits ?? this.bits;
    this.quantization = { group_size: GROUP, bits: this.bits, mode: 'affine' };
  }

  tensorsOf(spec: TensorSpec): MlxTensor[] {
    const name = mlxName(spec.name);
    const { content, shape } = spec;
    const routed = spec.name.includes('_exps.');
    if (content.kind === 'noise') {
      const bits = routed ? this.expertBits : this.bits;
      return this.quantised(name, shape, bits, content.std, content.distinctRows);
    }
    // Values that MLX quantises none the less: the router and the gate of the shared expert.
    if (spec.name.includes('ffn_gate_inp')) {
      const std = deviationOf(content.draw, new Random(`${this.seed} deviation ${name}`));
      const matrix = shape.length === 1 ? [...shape, 1] : shape;
      return this.quantised(name, matrix, ROUTER_BITS, std, 1);
    }
    return [this.values(name, spec)];
  }

  private quantised(
    name: string,
    shape: readonly number[],
    bits: number,
    std: number,
    distinctRows: number,
  ): MlxTensor[] {
    const type = typeOf(bits);
    if (bits !== this.bits) this.quantization[name] = { group_size: GROUP, bits };
    const rows = [...shape].reverse().slice(0, -1);
    const cols = shape[0]!;
    const values = shape.reduce((product, size) => product * size, 1);
    const { codes, side } = affineBytes(type, values);
    const label = `${this.seed} tensor ${name}`;
    const sectionBytes = (cols / 8) * bits * distinctRows;
    const factors = (which: 'scales' | 'biases'): MlxTensor => ({
      name: `${name}.${which}`,
      dtype: 'BF16',
      shape: [...rows, cols / GROUP],
      byteLength: side,
      // The same places in both pools: a bias belongs to its scale.
      pieces: () => factorPieces(this.factorPool(type, std)[which], side, new Random(`${label} factors`)),
    });
    return [
      {
        name: `${name}.weight`,
        dtype: 'U32',
        shape: [...rows, (cols * bits) / 32],
        byteLength: codes,
        pieces: () => codePieces(this.codePool(), codes, sectionBytes, new Random(label)),
      },
      factors('scales'),
      factors('biases'),
    ];
  }

  private values(name: string, { shape, content, name: gguf }: TensorSpec): MlxTensor {
    const isDecay = gguf.endsWith('ssm_a');
    const count = shape.reduce((product, size) => product * size, 1);
    const reversed = [...shape].reverse();
    return {
      name,
      dtype: isDecay ? 'F32' : 'BF16',
      shape: gguf.endsWith('ssm_conv1d.weight') ? [...reversed, 1] : reversed,
      byteLength: count * (isDecay ? 4 : 2),
      *pieces() {
        if (content.kind !== 'values') return;
        const random = new Random(name);
        const drawn = Float32Array.from({ length: count }, () => content.draw(random));
        const data = isDecay ? drawn.map((value) => Math.log(-value)) : Uint16Array.from(drawn, toBfloat);
        yield new Uint8Array(data.buffer);
      },
    };
  }

  private factorPool(type: GgmlType, std: number): Factors {
    const key = `${type.name} ${std}`;
    const known = this.factors.get(key);
    if (known !== undefined) return known;
    const made = randomFactors(type, std, FACTOR_GROUPS, new Random(`${this.seed} factors ${key}`));
    this.factors.set(key, made);
    return made;
  }

  private codePool(): Uint8Array {
    if (this.codes === undefined) {
      this.codes = new Uint8Array(POOL_BYTES);
      new Random(`${this.seed} codes`).fillBytes(this.codes);
    }
    return this.codes;
  }
}

function deviationOf(draw: (random: Random) => number, random: Random): number {
  const SAMPLES = 4096;
  let squares = 0;
  for (let sample = 0; sample < SAMPLES; sample++) squares += draw(random) ** 2;
  return Math.sqrt(squares / SAMPLES);
}

function* codePieces(
  pool: Uint8Array,
  byteLength: number,
  sectionBytes: number,
  random: Random,
): Generator<Uint8Array> {
  const stamp = new Uint8Array(Math.min(DISTINCT_BYTES, sectionBytes));
  for (let section = 0; section < byteLength; section += sectionBytes) {
    random.fillBytes(stamp);
    yield stamp;
    for (let left = sectionBytes - stamp.length; left > 0; ) {
      const length = Math.min(left, STRETCH_BYTES);
      const start = random.below(pool.length - length + 1);
      yield pool.subarray(start, start + length);
      left -= length;
    }
  }
}

function* factorPieces(pool: Uint8Array, byteLength: number, random: Random): Generator<Uint8Array> {
  for (let left = byteLength; left > 0; ) {
    const length = Math.min(left, STRETCH_BYTES);
    const start = 2 * random.below((pool.length - length) / 2 + 1);
    yield pool.subarray(start, start + length);
    left -= length;
  }
}

/** The file of a run of tensors, as its header and what follows it. */
function safetensorsPlan(path: string, tensors: readonly MlxTensor[]): OutputPlan {
  let at = 0;
  const header: Record<string, unknown> = { __metadata__: { format: 'mlx' } };
  for (const { name, dtype, shape, byteLength } of tensors) {
    header[name] = { dtype, shape, data_offsets: [at, at + byteLength] };
    at += byteLength;
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return {
    path,
    sizeBytes: length.length + json.length + at,
    *pieces() {
      yield length;
      yield json;
      for (const tensor of tensors) yield* tensor.pieces();
    },
  };
}

function jsonPlan(path: string, value: unknown): OutputPlan {
  const bytes = Buffer.from(`${JSON.stringify(value, undefined, 1)}\n`);
  return { path, sizeBytes: bytes.length, pieces: () => [bytes] };
}

export function planMlx(
  options: MlxOptions & { readonly preset: Preset },
  shape: ModelShape,
  folder: string,
): { files: OutputPlan[]; tensorCount: number } {
  if (shape.architecture !== 'qwen35moe')
    throw new MakeModelError('usage', `format mlx has no ${shape.architecture}, only qwen35moe`);
  const maker = new MlxMaker(options);
  const tensors = modelTensors(shape).flatMap((spec) => maker.tensorsOf(spec));
  const parts = options.splitFiles ?? 1;
  const partsMax = Math.min(SPLIT_FILES_MAX, tensors.length);
  if (!Number.isInteger(parts) || parts < 1 || parts > partsMax) {
    throw new MakeModelError('usage', `${parts} files are asked for; this model fits in 1 to ${partsMax}`);
  }
  try {
    mkdirSync(folder, { recursive: true });
  } catch (cause) {
    throw diskError(folder, 'cannot be made', cause);
  }
  const digits = (value: number): string => String(value).padStart(5, '0');
  const nameOf = (part: number): string =>
    parts === 1 ? 'model.safetensors' : `model-${digits(part + 1)}-of-${digits(parts)}.safetensors`;
  const runs = inRuns(tensors, parts);
  const files = runs.map((run, part) => safetensorsPlan(join(folder, nameOf(part)), run));
  if (parts > 1) {
    const map = runs.flatMap((run, part) => run.map(({ name }) => [name, nameOf(part)] as const));
    files.push(
      jsonPlan(join(folder, 'model.safetensors.index.json'), { weight_map: Object.fromEntries(map) }),
    );
  }
  files.push(
    jsonPlan(join(folder, 'config.json'), configOf(shape, maker.quantization)),
    jsonPlan(join(folder, 'tokenizer.json'), tokenizerOf(shape)),
    jsonPlan(join(folder, 'tokenizer_config.json'), {
      eos_token: '<|im_end|>',
      add_bos_token: false,
      chat_template: CHAT_TEMPLATE,
    }),
  );
  return { files, tensorCount: tensors.length };
}

function configOf(shape: ModelShape, quantization: object): unknown {
  return {
    architectures: ['Qwen3_5MoeForConditionalGeneration'],
    model_type: 'qwen3_5_moe',
    text_config: {
      model_type: 'qwen3_5_moe_text',
      hidden_size: shape.hidden,
      num_hidden_layers: shape.layers,
      vocab_size: shape.vocabulary,
      num_attention_heads: shape.heads,
      num_key_value_heads: shape.kvHeads,
      head_dim: shape.headDim,
      linear_num_key_heads: shape.deltaKeyHeads,
      linear_num_value_heads: shape.deltaValueHeads,
      linear_key_head_dim: shape.deltaHeadDim,
      linear_value_head_dim: shape.deltaHeadDim,
      linear_conv_kernel_dim: shape.convKernel,
      num_experts: shape.experts,
      num_experts_per_tok: shape.expertsPerToken,
      moe_intermediate_size: shape.expertWidth,
      shared_expert_intermediate_size: shape.sharedWidth,
      layer_types: Array.from({ length: shape.layers }, (_, layer) =>
        isAttentionLayer(shape, layer) ? 'full_attention' : 'linear_attention',
      ),
      rms_norm_eps: 1e-6,
      max_position_embeddings: shape.contextLength,
      tie_word_embeddings: false,
      rope_parameters: {
        rope_type: 'default',
        rope_theta: shape.ropeTheta,
        partial_rotary_factor: shape.rotaryDims / shape.headDim,
        mrope_section: [11, 11, 10],
        mrope_interleaved: true,
      },
    },
    quantization,
    quantization_config: quantization,
  };
}

/** How tokenizer.json writes the pattern that GGUF calls qwen35. */
const PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" +
  '|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const NORMAL = 1;
const CONTROL = 3;
const USER_DEFINED = 4;

/** The embedding has rows beyond the tokens, as in the real model. */
function tokenizerOf(shape: ModelShape): unknown {
  const { tokens, types, merges } = tokenizerTables(shape.vocabulary);
  const entries = tokens.map((text, id) => ({ text, id, type: types[id] }));
  return {
    version: '1.0',
    added_tokens: entries
      .filter(({ type }) => type === CONTROL || type === USER_DEFINED)
      .map(({ text, id, type }) => ({ id, content: text, special: type === CONTROL })),
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: PATTERN }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    model: {
      type: 'BPE',
      ignore_merges: false,
      byte_fallback: false,
      vocab: Object.fromEntries(
        entries.filter(({ type }) => type === NORMAL).map(({ text, id }) => [text, id]),
      ),
      merges,
    },
  };
}
