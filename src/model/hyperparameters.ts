/**
 * The numbers that shape a model, read from the file's metadata and from nowhere else.
 *
 * Keys follow llama.cpp's GGUF convention (`<architecture>.<key>`). Every number has bounds: wide enough for any model of
 * the family to come, narrow enough that no product of two of them leaves the safe integers. What the engine cannot do
 * (another architecture, RoPE scaling, layers of different widths) is refused by name instead of computed wrongly.
 */
import { MoestreamError } from '../errors.ts';
import type { ModelShape } from '../native.ts';
import { quoted } from './header-reader.ts';
import type { ModelSource } from './model-source.ts';

export const ARCHITECTURES = ['qwen35moe', 'qwen3next', 'qwen3moe'] as const;
export type Architecture = (typeof ARCHITECTURES)[number];

/** What the model's makers suggest for sampling, where the file says. */
export interface SamplingDefaults {
  readonly temperature: number | undefined;
  readonly topK: number | undefined;
  readonly topP: number | undefined;
}

/** `layers` without the MTP layers that newer converters append; `expertsPerToken` as used: trained, or the caller's. */
export interface Hyperparameters extends ModelShape {
  readonly architecture: Architecture;
  readonly name: string | undefined;
  /** Positions that the model was trained for. */
  readonly contextLength: number;
  readonly trainedExpertsPerToken: number;
  readonly sampling: SamplingDefaults;
}

const LAYERS_MAX = 1024;
const MTP_LAYERS_MAX = 8;
const WIDTH_MAX = 1 << 20;
const HEADS_MAX = 4096;
const HEAD_DIM_MAX = 4096;
const EXPERTS_MAX = 65536;
/** The backend keeps the selection of a row in small fixed arrays. */
const EXPERTS_PER_TOKEN_MAX = 256;
const CONTEXT_MAX = 1 << 24;
const CONV_KERNEL_MAX = 64;
/** ggml's number for a softmax router. */
const GATING_SOFTMAX = 1;
/** Below this a norm of zeros divides by nothing; models use 1e-6. */
const RMS_EPSILON_MIN = 1e-12;
const ROPE_THETA_DEFAULT = 10_000;
const ATTENTION_INTERVAL_DEFAULT = 4;

/** Typed access to the keys of one architecture. */
class Keys {
  readonly architecture: Architecture;
  private readonly source: ModelSource;

  constructor(source: ModelSource) {
    this.source = source;
    const name = source.metadata.string('general.architecture');
    const known = ARCHITECTURES.find((each) => each === name);
    if (known === undefined) {
      throw new MoestreamError(
        'MODEL_UNSUPPORTED',
        `${source.files[0]!.path} is a ${quoted(name)} model; this build runs ${ARCHITECTURES.join(', ')}`,
      );
    }
    this.architecture = known;
  }

  key(name: string): string {
    return `${this.architecture}.${name}`;
  }

  integer(name: string, max: number): number {
    return this.source.metadata.integer(this.key(name), 1, max);
  }

  optionalInteger(name: string, min: number, max: number): number | undefined {
    return this.source.metadata.optionalInteger(this.key(name), min, max);
  }

  optionalNumber(name: string, min: number, max: number): number | undefined {
    return this.source.metadata.optionalNumber(this.key(name), min, max);
  }

  /** A number, or one per layer that must then be the same in all of them. Layers without it (0) do not count. */
  uniform(name: string, max: number): number {
    const { metadata } = this.source;
    const key = this.key(name);
    if (!metadata.isArray(key)) return metadata.integer(key, 1, max);
    const values = [...new Set(metadata.optionalIntegers(key, 0, max))].filter((value) => value !== 0);
    if (values.length === 1) return values[0]!;
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${this.source.files[0]!.path}: "${key}" differs between layers (${values.join(', ')}), which is not supported`,
    );
  }

  /** A factor without a type is linear scaling; 0 and 1 scale nothing. */
  private unnamedScaling(): string | undefined {
    const factors = ['rope.scaling.factor', 'rope.scale_linear'].map(
      (name) => this.optionalNumber(name, 0, Number.MAX_VALUE) ?? 1,
    );
    return factors.every((factor) => factor === 0 || factor === 1) ? undefined : 'linear';
  }

  /** Settings that change what the router does, and that no model of this family uses. */
  refuseOtherRouting(): void {
    const { metadata } = this.source;
    const scale = metadata.optionalNumber(this.key('expert_weights_scale'), -1e6, 1e6);
    const gating = metadata.optionalInteger(this.key('expert_gating_func'), 0, 255);
    const groups = metadata.optionalInteger(this.key('expert_group_count'), 0, EXPERTS_MAX);
    const problem =
      scale !== undefined && scale !== 0 && scale !== 1
        ? `expert_weights_scale is ${scale}`
        : gating !== undefined && gating !== GATING_SOFTMAX && gating !== 0
          ? `expert_gating_func is ${gating}`
          : groups !== undefined && groups > 1
            ? `expert_group_count is ${groups}`
            : undefined;
    if (problem === undefined) return;
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${this.source.files[0]!.path}: ${problem}, which is not supported`,
    );
  }

  /** Any scaling of RoPE changes the positions, so a model that asks for it must not run without. */
  refuseRopeScaling(): void {
    const type = this.source.metadata.optionalString(this.key('rope.scaling.type')) ?? this.unnamedScaling();
    if (type === undefined || type === 'none') return;
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${this.source.files[0]!.path}: RoPE scaling ${quoted(type)} is not supported`,
    );
  }
}

function layerKinds(source: ModelSource, keys: Keys, layers: number): Uint8Array {
  if (keys.architecture === 'qwen3moe') return new Uint8Array(layers).fill(1);
  const key = keys.key('attention.recurrent_layers');
  const recurrent = source.metadata.optionalIntegers(key, 0, 1);
  if (recurrent !== undefined) {
    if (recurrent.length < layers) {
      throw source.metadata.invalid(key, `has ${recurrent.length} entries for ${layers} layers`);
    }
    return Uint8Array.from(recurrent.slice(0, layers), (isRecurrent) => 1 - isRecurrent);
  }
  const interval =
    keys.optionalInteger('full_attention_interval', 1, LAYERS_MAX) ?? ATTENTION_INTERVAL_DEFAULT;
  return Uint8Array.from({ length: layers }, (_, layer) => ((layer + 1) % interval === 0 ? 1 : 0));
}

function readDelta(
  source: ModelSource,
  keys: Keys,
): Pick<
  Hyperparameters,
  'deltaKeyHeads' | 'deltaValueHeads' | 'deltaHeadDim' | 'convKernel' | 'tiledValueHeads'
> {
  const tiledValueHeads = keys.architecture === 'qwen35moe' && source.groupedValueHeads !== true;
  if (keys.architecture === 'qwen3moe') {
    return { deltaKeyHeads: 0, deltaValueHeads: 0, deltaHeadDim: 0, convKernel: 0, tiledValueHeads };
  }
  const deltaKeyHeads = keys.integer('ssm.group_count', HEADS_MAX);
  const deltaValueHeads = keys.integer('ssm.time_step_rank', HEADS_MAX);
  const deltaHeadDim = keys.integer('ssm.state_size', HEAD_DIM_MAX);
  const inner = keys.integer('ssm.inner_size', WIDTH_MAX);
  if (deltaValueHeads % deltaKeyHeads !== 0) {
    throw source.metadata.invalid(
      keys.key('ssm.time_step_rank'),
      `is ${deltaValueHeads}, not a multiple of the ${deltaKeyHeads} key heads`,
    );
  }
  if (inner !== deltaValueHeads * deltaHeadDim) {
    throw source.metadata.invalid(
      keys.key('ssm.inner_size'),
      `is ${inner}, not ${deltaValueHeads} heads of ${deltaHeadDim}`,
    );
  }
  const convKernel = keys.integer('ssm.conv_kernel', CONV_KERNEL_MAX);
  return { deltaKeyHeads, deltaValueHeads, deltaHeadDim, convKernel, tiledValueHeads };
}

/**
 * With interleaved sections (t, h, w) every rotary pair must belong to one of the three, which have the same position
 * for text; a pair that belongs to none would not rotate at all.
 */
function refuseUnplacedPairs(source: ModelSource, keys: Keys, rotaryDims: number): void {
  const key = keys.key('rope.dimension_sections');
  const sections = source.metadata.has(key)
    ? source.metadata.optionalIntegers(key, 0, HEAD_DIM_MAX)
    : undefined;
  if (sections === undefined || sections.every((size) => size === 0)) return;
  const cycle = sections.reduce((sum, size) => sum + size, 0);
  for (let pair = 0; pair < rotaryDims / 2; pair++) {
    const within = pair % cycle;
    if (within < 3 * (sections[within % 3] ?? 0)) continue;
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${source.files[0]!.path}: "${key}" ${sections.join(', ')} leaves rotary pair ${pair} without a position`,
    );
  }
}

function readAttention(
  source: ModelSource,
  keys: Keys,
  hidden: number,
): Pick<Hyperparameters, 'heads' | 'kvHeads' | 'headDim' | 'rotaryDims' | 'ropeTheta' | 'gatedAttention'> {
  const heads = keys.uniform('attention.head_count', HEADS_MAX);
  // Without the key every head has its own, as in llama.cpp.
  const kvHeads = source.metadata.has(keys.key('attention.head_count_kv'))
    ? keys.uniform('attention.head_count_kv', HEADS_MAX)
    : heads;
  if (heads % kvHeads !== 0) {
    throw source.metadata.invalid(
      keys.key('attention.head_count'),
      `is ${heads}, not a multiple of the ${kvHeads} KV heads`,
    );
  }
  const headDim = keys.optionalInteger('attention.key_length', 2, HEAD_DIM_MAX) ?? hidden / heads;
  if (!Number.isInteger(headDim) || headDim < 2) {
    throw source.metadata.invalid(
      keys.key('attention.head_count'),
      `is ${heads}, which does not divide a width of ${hidden} into heads`,
    );
  }
  const valueDim = keys.optionalInteger('attention.value_length', 1, HEAD_DIM_MAX) ?? headDim;
  if (valueDim !== headDim) {
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${source.files[0]!.path}: value heads of ${valueDim} beside key heads of ${headDim} are not supported`,
    );
  }
  const rotaryDims = keys.optionalInteger('rope.dimension_count', 2, headDim) ?? headDim;
  refuseUnplacedPairs(source, keys, rotaryDims);
  if (rotaryDims % 2 !== 0) {
    throw source.metadata.invalid(keys.key('rope.dimension_count'), `is ${rotaryDims}, it must be even`);
  }
  return {
    heads,
    kvHeads,
    headDim,
    rotaryDims,
    ropeTheta: keys.optionalNumber('rope.freq_base', 1, 1e12) ?? ROPE_THETA_DEFAULT,
    gatedAttention: keys.architecture !== 'qwen3moe',
  };
}

/** A shared expert that the metadata does not mention is still there: skipping it would answer wrongly. */
function readSharedWidth(source: ModelSource, keys: Keys): number {
  const width = keys.optionalInteger('expert_shared_feed_forward_length', 0, WIDTH_MAX);
  const actual = source.tensors.get('blk.0.ffn_gate_shexp.weight')?.shape[1] ?? 0;
  if (width === undefined) return actual;
  if (width === 0 && actual > 0) {
    throw source.metadata.invalid(
      keys.key('expert_shared_feed_forward_length'),
      `is 0, the file has one of ${actual}`,
    );
  }
  return width;
}

/** The vocabulary is what the embedding has rows for: a tokenizer may know fewer tokens. */
function readVocabulary(source: ModelSource): number {
  const rows = source.tensors.get('token_embd.weight')?.shape[1];
  if (rows !== undefined && rows <= 1 << 24) return rows;
  throw new MoestreamError(
    'MODEL_INVALID',
    `${source.files[0]!.path}: tensor "token_embd.weight" is ${rows === undefined ? 'missing' : `${rows} rows high`}`,
    rows === undefined ? { hint: 'A file with only a vocabulary can be tokenized with, but not run.' } : {},
  );
}

/**
 * Reads and checks the hyperparameters. `expertsPerToken` overrides the file's top-k. Throws MODEL_INVALID or
 * MODEL_UNSUPPORTED naming the key, USAGE for an override that the model cannot have.
 */
export function readHyperparameters(source: ModelSource, expertsPerToken?: number): Hyperparameters {
  const { metadata } = source;
  const keys = new Keys(source);
  keys.refuseRopeScaling();
  keys.refuseOtherRouting();
  const blocks = keys.integer('block_count', LAYERS_MAX);
  const layers = blocks - (keys.optionalInteger('nextn_predict_layers', 0, MTP_LAYERS_MAX) ?? 0);
  if (layers < 1)
    throw metadata.invalid(keys.key('nextn_predict_layers'), `leaves ${layers} of ${blocks} layers`);
  const hidden = keys.integer('embedding_length', WIDTH_MAX);
  const experts = keys.integer('expert_count', EXPERTS_MAX);
  const trainedExpertsPerToken = keys.uniform('expert_used_count', EXPERTS_PER_TOKEN_MAX);
  const most = Math.min(experts, EXPERTS_PER_TOKEN_MAX);
  if (trainedExpertsPerToken > experts) {
    throw metadata.invalid(
      keys.key('expert_used_count'),
      `is ${trainedExpertsPerToken}, there are ${experts} experts`,
    );
  }
  const override = expertsPerToken ?? trainedExpertsPerToken;
  if (!Number.isInteger(override) || override < 1 || override > most) {
    throw new MoestreamError(
      'USAGE',
      `${expertsPerToken} experts per token, this model can have 1 to ${most}`,
    );
  }
  return {
    architecture: keys.architecture,
    name: metadata.optionalString('general.name'),
    layers,
    hidden,
    vocabulary: readVocabulary(source),
    contextLength: keys.integer('context_length', CONTEXT_MAX),
    rmsEpsilon: metadata.number(keys.key('attention.layer_norm_rms_epsilon'), RMS_EPSILON_MIN, 1),
    attentionLayers: layerKinds(source, keys, layers),
    ...readAttention(source, keys, hidden),
    ...readDelta(source, keys),
    experts,
    trainedExpertsPerToken,
    expertsPerToken: override,
    expertWidth: keys.uniform('expert_feed_forward_length', WIDTH_MAX),
    sharedWidth: readSharedWidth(source, keys),
    sampling: {
      temperature: metadata.optionalNumber('general.sampling.temp', 0, 100),
      topK: metadata.optionalInteger('general.sampling.top_k', 0, 2 ** 31 - 1),
      topP: metadata.optionalNumber('general.sampling.top_p', 0, 1),
    },
  };
}
