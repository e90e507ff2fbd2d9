/**
 * The numbers that shape a model, all from the file's metadata, all checked.
 *
 * Invariant: every count is between bounds that keep any product of two of them a safe integer.
 */
import { MoestreamError } from '../errors.ts';
import type { Gguf } from './gguf.ts';
import type { GgufMetadata } from './gguf-metadata.ts';

export const ARCHITECTURES = ['qwen35moe', 'qwen3next', 'qwen3moe'] as const;
export type Architecture = (typeof ARCHITECTURES)[number];

export interface SamplingDefaults {
  readonly temperature: number | undefined;
  readonly topK: number | undefined;
  readonly topP: number | undefined;
}

export interface Hyperparameters {
  readonly architecture: Architecture;
  readonly name: string | undefined;
  readonly layers: number;
  readonly hidden: number;
  readonly vocabulary: number;
  readonly contextLength: number;
  readonly rmsEpsilon: number;
  readonly attentionLayers: Uint8Array;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotaryDims: number;
  readonly ropeTheta: number;
  readonly gatedAttention: boolean;
  readonly deltaKeyHeads: number;
  readonly deltaValueHeads: number;
  readonly deltaHeadDim: number;
  readonly convKernel: number;
  readonly tiledValueHeads: boolean;
  readonly experts: number;
  readonly trainedExpertsPerToken: number;
  readonly expertsPerToken: number;
  readonly expertWidth: number;
  readonly sharedWidth: number;
  readonly sampling: SamplingDefaults;
}

export function readHyperparameters(gguf: Gguf, expertsPerToken?: number): Hyperparameters {
  const { metadata } = gguf;
  const architecture = metadata.string('general.architecture') as Architecture;
  if (!ARCHITECTURES.includes(architecture)) throw new MoestreamError('MODEL_UNSUPPORTED', `architecture ${architecture}`);
  const key = (name: string) => `${architecture}.${name}`;
  const uniform = (name: string, max: number): number => {
    if (!metadata.isArray(key(name))) return metadata.integer(key(name), 1, max);
    return metadata.optionalIntegers(key(name), 1, max)![0]!;
  };
  const layers = metadata.integer(key('block_count'), 1, 4096) - (metadata.optionalInteger(key('nextn_predict_layers'), 0, 8) ?? 0);
  const delta = architecture !== 'qwen3moe';
  const interval = delta ? (metadata.optionalInteger(key('full_attention_interval'), 1, 4096) ?? 4) : 1;
  const hidden = metadata.integer(key('embedding_length'), 1, 1 << 20);
  const heads = uniform('attention.head_count', 4096);
  const headDim = metadata.optionalInteger(key('attention.key_length'), 1, 4096) ?? hidden / heads;
  const trained = uniform('expert_used_count', 65536);
  const embd = gguf.tensors.get('token_embd.weight');
  if (!embd) throw new MoestreamError('MODEL_INVALID', 'token_embd.weight is missing');
  return {
    architecture,
    name: metadata.optionalString('general.name'),
    layers, hidden,
    vocabulary: embd.shape[1]!,
    contextLength: metadata.integer(key('context_length'), 1, 1 << 24),
    rmsEpsilon: metadata.number(key('attention.layer_norm_rms_epsilon'), 0, 1),
    attentionLayers: Uint8Array.from({ length: layers }, (_, i) => ((i + 1) % interval === 0 ? 1 : 0)),
    heads, kvHeads: uniform('attention.head_count_kv', 4096), headDim,
    rotaryDims: metadata.optionalInteger(key('rope.dimension_count'), 1, 4096) ?? headDim,
    ropeTheta: metadata.optionalNumber(key('rope.freq_base'), 1, 1e12) ?? 10000,
    gatedAttention: delta,
    deltaKeyHeads: delta ? metadata.integer(key('ssm.group_count'), 1, 4096) : 0,
    deltaValueHeads: delta ? metadata.integer(key('ssm.time_step_rank'), 1, 4096) : 0,
    deltaHeadDim: delta ? metadata.integer(key('ssm.state_size'), 1, 4096) : 0,
    convKernel: delta ? metadata.integer(key('ssm.conv_kernel'), 1, 64) : 0,
    tiledValueHeads: architecture === 'qwen35moe',
    experts: metadata.integer(key('expert_count'), 1, 65536),
    trainedExpertsPerToken: trained,
    expertsPerToken: expertsPerToken ?? trained,
    expertWidth: uniform('expert_feed_forward_length', 1 << 20),
    sharedWidth: metadata.optionalInteger(key('expert_shared_feed_forward_length'), 0, 1 << 20) ?? 0,
    sampling: { temperature: metadata.optionalNumber('general.sampling.temp', 0, 100), topK: metadata.optionalInteger('general.sampling.top_k', 0, 1e6), topP: metadata.optionalNumber('general.sampling.top_p', 0, 1) },
  };
}
export type { GgufMetadata };
