/**
 * The metadata of a made model: its shape under the architecture's own keys, and its tokenizer.
 *
 * Why apart from the encoder: these are the keys that an engine must find, in the types that converters write them in.
 * Invariant: qwen3moe gets no key about Gated DeltaNet layers and only qwen35moe gets rope sections, as in real files,
 * so that a reader that asks for too much is found out.
 */
import type { MetadataEntry } from './gguf-header.ts';
import type { ModelShape } from './shapes.ts';
import { CHAT_TEMPLATE, tokenizerTables } from './tokenizer.ts';

/** Pairs of rotary dimensions that follow time, height and width of an image; for text they are all alike. */
const ROPE_SECTIONS = [11, 11, 10, 0];
/** The version of the block formats since 2023. */
const QUANTIZATION_VERSION = 2;
const RMS_EPSILON = 1e-6;

function number(type: 'u16' | 'u32' | 'i32' | 'f32', key: string, value: number): MetadataEntry {
  return { key, type, value };
}

function text(key: string, value: string): MetadataEntry {
  return { key, type: 'string', value };
}

function shapeEntries(shape: ModelShape): MetadataEntry[] {
  const u32 = (key: string, value: number) => number('u32', `${shape.architecture}.${key}`, value);
  const f32 = (key: string, value: number) => number('f32', `${shape.architecture}.${key}`, value);
  const entries = [
    u32('block_count', shape.layers),
    u32('context_length', shape.contextLength),
    u32('embedding_length', shape.hidden),
    u32('attention.head_count', shape.heads),
    u32('attention.head_count_kv', shape.kvHeads),
    u32('attention.key_length', shape.headDim),
    u32('attention.value_length', shape.headDim),
    f32('attention.layer_norm_rms_epsilon', RMS_EPSILON),
    f32('rope.freq_base', shape.ropeTheta),
    u32('expert_count', shape.experts),
    u32('expert_used_count', shape.expertsPerToken),
    u32('expert_feed_forward_length', shape.expertWidth),
  ];
  if (shape.sharedWidth > 0) entries.push(u32('expert_shared_feed_forward_length', shape.sharedWidth));
  if (shape.architecture === 'qwen3moe') return entries;
  entries.push(
    u32('rope.dimension_count', shape.rotaryDims),
    u32('ssm.conv_kernel', shape.convKernel),
    u32('ssm.state_size', shape.deltaHeadDim),
    u32('ssm.group_count', shape.deltaKeyHeads),
    u32('ssm.time_step_rank', shape.deltaValueHeads),
    u32('ssm.inner_size', shape.deltaValueHeads * shape.deltaHeadDim),
    u32('full_attention_interval', shape.attentionInterval),
  );
  if (shape.architecture === 'qwen35moe') {
    entries.push({ key: 'qwen35moe.rope.dimension_sections', type: 'integers', value: ROPE_SECTIONS });
  }
  return entries;
}

function tokenizerEntries(shape: ModelShape): MetadataEntry[] {
  const { tokens, types, merges, endOfTurnId, paddingId } = tokenizerTables(shape.vocabulary);
  return [
    text('tokenizer.ggml.model', 'gpt2'),
    text('tokenizer.ggml.pre', shape.architecture === 'qwen35moe' ? 'qwen35' : 'qwen2'),
    { key: 'tokenizer.ggml.tokens', type: 'strings', value: tokens },
    { key: 'tokenizer.ggml.token_type', type: 'integers', value: types },
    { key: 'tokenizer.ggml.merges', type: 'strings', value: merges },
    number('u32', 'tokenizer.ggml.eos_token_id', endOfTurnId),
    number('u32', 'tokenizer.ggml.padding_token_id', paddingId),
    { key: 'tokenizer.ggml.add_bos_token', type: 'bool', value: false },
    text('tokenizer.chat_template', CHAT_TEMPLATE),
  ];
}

export function modelMetadata(shape: ModelShape, name: string, fileType: number): MetadataEntry[] {
  return [
    text('general.architecture', shape.architecture),
    text('general.type', 'model'),
    text('general.name', name),
    number('u32', 'general.file_type', fileType),
    number('u32', 'general.quantization_version', QUANTIZATION_VERSION),
    ...shapeEntries(shape),
    ...tokenizerEntries(shape),
  ];
}

/** What each file of a split set says about itself. */
export function splitMetadata(part: number, parts: number, tensors: number): MetadataEntry[] {
  return [
    number('u16', 'split.no', part),
    number('u16', 'split.count', parts),
    number('i32', 'split.tensors.count', tensors),
  ];
}
