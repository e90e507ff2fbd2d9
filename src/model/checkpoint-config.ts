/**
 * config.json and generation_config.json as a model's metadata.
 *
 * One table says which field stands for which of GGUF's keys; bounds and sense are checked where the keys are read
 * (hyperparameters.ts). What the configuration says and no key can is refused here by name: another architecture, a router
 * that does not normalise, biases, layers without experts, a quantisation that is not MLX's affine one.
 */
import { basename, join, resolve } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { quoted } from './header-reader.ts';
import { isObject, type JsonValue, memberOf } from './strict-json.ts';
import { readJsonFile } from './text-file.ts';
import type { NamedValue, NamedValues } from './value-metadata.ts';

export const CONFIG_NAME = 'config.json';
export const GENERATION_CONFIG_NAME = 'generation_config.json';
export const TOKENIZER_NAME = 'tokenizer.json';
export const TOKENIZER_CONFIG_NAME = 'tokenizer_config.json';
export const CHAT_TEMPLATE_NAME = 'chat_template.jinja';

/** The files of a checkpoint that say what its tensors mean. */
export const TEXT_NAMES: readonly string[] = [
  CONFIG_NAME,
  GENERATION_CONFIG_NAME,
  TOKENIZER_NAME,
  TOKENIZER_CONFIG_NAME,
  CHAT_TEMPLATE_NAME,
];

const MODEL_TYPES: readonly JsonValue[] = ['qwen3_5_moe', 'qwen3_5_moe_text'];
const ARCHITECTURE = 'qwen35moe';

/** [GGUF's key, field of the configuration] */
const FIELDS: readonly (readonly [key: string, field: string])[] = [
  ['block_count', 'num_hidden_layers'],
  ['context_length', 'max_position_embeddings'],
  ['embedding_length', 'hidden_size'],
  ['attention.head_count', 'num_attention_heads'],
  ['attention.head_count_kv', 'num_key_value_heads'],
  ['attention.key_length', 'head_dim'],
  ['attention.layer_norm_rms_epsilon', 'rms_norm_eps'],
  ['expert_count', 'num_experts'],
  ['expert_used_count', 'num_experts_per_tok'],
  ['expert_feed_forward_length', 'moe_intermediate_size'],
  ['expert_shared_feed_forward_length', 'shared_expert_intermediate_size'],
  ['ssm.group_count', 'linear_num_key_heads'],
  ['ssm.time_step_rank', 'linear_num_value_heads'],
  ['ssm.state_size', 'linear_key_head_dim'],
  ['ssm.conv_kernel', 'linear_conv_kernel_dim'],
  ['full_attention_interval', 'full_attention_interval'],
];

/** How MLX has quantised a module. */
export interface Quantization {
  readonly bits: number;
  readonly group: number;
}

export class CheckpointConfig {
  readonly path: string;
  private readonly root: JsonValue;
  /** The part about language: the whole in models of text only. */
  private readonly text: JsonValue;
  private readonly prefix: string;
  private readonly quantization: JsonValue;

  constructor(folder: string) {
    this.path = join(folder, CONFIG_NAME);
    const root = readJsonFile(this.path);
    if (root === undefined) {
      throw new MoestreamError(
        'MODEL_NOT_FOUND',
        `${folder}: a folder without ${CONFIG_NAME}, not a checkpoint`,
        {
          hint: 'Give the path of a .gguf file, or of a whole checkpoint folder.',
        },
      );
    }
    this.root = root;
    const inner = memberOf(root, 'text_config');
    this.text = inner ?? root;
    this.prefix = inner === undefined ? '' : 'text_config.';
    this.quantization = memberOf(root, 'quantization') ?? memberOf(root, 'quantization_config');
    this.refuseOthers();
  }

  /** The name of the field behind a key. */
  fieldOf(key: string): string {
    const field = FIELDS.find(([suffix]) => key === `${ARCHITECTURE}.${suffix}`)?.[1];
    return field === undefined ? key : `${this.prefix}${field}`;
  }

  values(folder: string): NamedValues {
    const values = new Map<string, NamedValue>();
    const set = (key: string, field: string, value: JsonValue): void => {
      if (value !== undefined && value !== null) values.set(key, { path: this.path, field, value });
    };
    const name = (key: string): string => `${ARCHITECTURE}.${key}`;
    set('general.architecture', 'model_type', ARCHITECTURE);
    set('general.name', 'the folder', basename(resolve(folder)));
    for (const [key, field] of FIELDS) set(name(key), this.fieldOf(name(key)), this.at(field));
    const heads = this.at('linear_num_value_heads');
    const valueDim = this.at('linear_value_head_dim');
    if (typeof heads === 'number' && typeof valueDim === 'number')
      set(name('ssm.inner_size'), `${this.prefix}linear_value_head_dim`, heads * valueDim);
    this.setLayerKinds(set, name('attention.recurrent_layers'));
    this.setRope(set, name);
    this.setSampling(folder, values);
    return values;
  }

  /** The ids that generation_config.json and config.json say end an answer. */
  endIds(folder: string): number[] {
    const generation = readJsonFile(join(folder, GENERATION_CONFIG_NAME));
    return [
      memberOf(generation, 'eos_token_id'),
      this.at('eos_token_id'),
      memberOf(this.root, 'eos_token_id'),
    ]
      .flat()
      .filter((id): id is number => typeof id === 'number');
  }

  /** How a module is quantised; its own entry comes before the one for all. */
  quantizationOf(module: string): Quantization {
    const own = memberOf(this.quantization, module);
    const from = isObject(own) ? own : this.quantization;
    const field = isObject(own) ? `quantization of ${quoted(module)}` : 'quantization';
    const mode = memberOf(from, 'mode') ?? memberOf(this.quantization, 'mode') ?? 'affine';
    if (mode !== 'affine') throw this.unsupported(`${field}: mode ${quoted(String(mode))}`);
    const bits = memberOf(from, 'bits');
    const group = memberOf(from, 'group_size');
    if (typeof bits === 'number' && typeof group === 'number') return { bits, group };
    throw new MoestreamError(
      'MODEL_INVALID',
      `${this.path}: ${field} does not say bits and group_size, and the files are quantised`,
    );
  }

  private at(key: string): JsonValue {
    return memberOf(this.text, key);
  }

  private unsupported(problem: string): MoestreamError {
    return new MoestreamError('MODEL_UNSUPPORTED', `${this.path}: ${problem}, which is not supported`);
  }

  private refuseOthers(): void {
    const type = memberOf(this.root, 'model_type');
    if (!MODEL_TYPES.includes(type) && !MODEL_TYPES.includes(this.at('model_type'))) {
      throw new MoestreamError(
        'MODEL_UNSUPPORTED',
        `${this.path} is a ${quoted(String(type))} model; of checkpoints this build runs qwen3_5_moe`,
      );
    }
    const method = memberOf(this.quantization, 'quant_method');
    if (method !== undefined) throw this.unsupported(`quant_method is ${quoted(String(method))}`);
    const expected: readonly (readonly [field: string, value: JsonValue])[] = [
      ['norm_topk_prob', true],
      ['attn_output_gate', true],
      ['attention_bias', false],
      ['hidden_act', 'silu'],
      ['decoder_sparse_step', 1],
    ];
    for (const [field, value] of expected) {
      const found = this.at(field) ?? value;
      if (found !== value) throw this.unsupported(`${this.prefix}${field} is ${quoted(String(found))}`);
    }
    const dense = this.at('mlp_only_layers');
    if (Array.isArray(dense) && dense.length > 0) throw this.unsupported(`${this.prefix}mlp_only_layers`);
  }

  private setLayerKinds(set: (key: string, field: string, value: JsonValue) => void, key: string): void {
    const types = this.at('layer_types');
    if (types === undefined) return;
    const field = `${this.prefix}layer_types`;
    if (!Array.isArray(types)) {
      set(key, field, types);
      return;
    }
    const kinds = (types as JsonValue[]).map((type) => {
      if (type === 'linear_attention') return 1;
      if (type === 'full_attention') return 0;
      throw this.unsupported(`${field} has ${quoted(String(type))}`);
    });
    set(key, field, kinds);
  }

  private setRope(
    set: (key: string, field: string, value: JsonValue) => void,
    name: (key: string) => string,
  ): void {
    const rope = this.at('rope_parameters') ?? this.at('rope_scaling');
    const field = (key: string): string => `${this.prefix}rope_parameters.${key}`;
    const value = (key: string): JsonValue => memberOf(rope, key) ?? this.at(key);
    const type = memberOf(rope, 'rope_type') ?? memberOf(rope, 'type');
    if (type !== undefined && type !== 'default' && type !== 'mrope')
      set(name('rope.scaling.type'), field('rope_type'), type);
    set(name('rope.freq_base'), field('rope_theta'), value('rope_theta'));
    set(name('rope.dimension_sections'), field('mrope_section'), value('mrope_section'));
    const share = value('partial_rotary_factor');
    if (typeof share !== 'number') {
      throw new MoestreamError(
        'MODEL_INVALID',
        `${this.path}: "${field('partial_rotary_factor')}" is missing`,
      );
    }
    const headDim = this.at('head_dim');
    if (typeof headDim === 'number')
      set(name('rope.dimension_count'), field('partial_rotary_factor'), headDim * share);
  }

  private setSampling(folder: string, values: Map<string, NamedValue>): void {
    const path = join(folder, GENERATION_CONFIG_NAME);
    const generation = readJsonFile(path);
    const greedy = memberOf(generation, 'do_sample') === false;
    const set = (key: string, field: string, value: JsonValue): void => {
      if (typeof value === 'number') values.set(`general.sampling.${key}`, { path, field, value });
    };
    set('temp', 'temperature', greedy ? 0 : memberOf(generation, 'temperature'));
    set('top_k', 'top_k', memberOf(generation, 'top_k'));
    set('top_p', 'top_p', memberOf(generation, 'top_p'));
  }
}
