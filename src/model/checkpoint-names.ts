/**
 * What checkpoints of the architecture call their tensors, and what GGUF calls the same.
 *
 * MLX and Hugging Face differ in the path before `layers.N`, in the experts' names, and in what their vectors mean: MLX
 * has added the 1 to norms already. The shape of the convolution tells which of the two wrote a file, as it does for MLX's
 * own loader: (channels, taps, 1) there, (channels, 1, taps) here.
 */
import type { VectorChange } from './places.ts';

/** Longest first: the last is the beginning of another. */
const PREFIXES = ['language_model.model.', 'model.language_model.', 'model.'] as const;

/** Modules of a layer: [name here, name in GGUF]. Their tensors end in `.weight`, and when quantised in two more. */
const LAYER_MODULES: ReadonlyMap<string, string> = new Map([
  ['input_layernorm', 'attn_norm'],
  ['post_attention_layernorm', 'post_attention_norm'],
  ['self_attn.q_proj', 'attn_q'],
  ['self_attn.k_proj', 'attn_k'],
  ['self_attn.v_proj', 'attn_v'],
  ['self_attn.o_proj', 'attn_output'],
  ['self_attn.q_norm', 'attn_q_norm'],
  ['self_attn.k_norm', 'attn_k_norm'],
  ['linear_attn.in_proj_qkv', 'attn_qkv'],
  ['linear_attn.in_proj_z', 'attn_gate'],
  ['linear_attn.in_proj_b', 'ssm_beta'],
  ['linear_attn.in_proj_a', 'ssm_alpha'],
  ['linear_attn.conv1d', 'ssm_conv1d'],
  ['linear_attn.norm', 'ssm_norm'],
  ['linear_attn.out_proj', 'ssm_out'],
  ['mlp.gate', 'ffn_gate_inp'],
  ['mlp.shared_expert_gate', 'ffn_gate_inp_shexp'],
  ['mlp.shared_expert.gate_proj', 'ffn_gate_shexp'],
  ['mlp.shared_expert.up_proj', 'ffn_up_shexp'],
  ['mlp.shared_expert.down_proj', 'ffn_down_shexp'],
  ['mlp.switch_mlp.gate_proj', 'ffn_gate_exps'],
  ['mlp.switch_mlp.up_proj', 'ffn_up_exps'],
  ['mlp.switch_mlp.down_proj', 'ffn_down_exps'],
]);

/** Tensors of a layer that are no module's weight. */
const LAYER_TENSORS: ReadonlyMap<string, string> = new Map([
  ['linear_attn.A_log', 'ssm_a'],
  ['linear_attn.dt_bias', 'ssm_dt.bias'],
  ['mlp.experts.gate_up_proj', 'ffn_gate_up_exps.weight'],
  ['mlp.experts.down_proj', 'ffn_down_exps.weight'],
]);

const MODEL_MODULES: ReadonlyMap<string, string> = new Map([
  ['embed_tokens', 'token_embd'],
  ['norm', 'output_norm'],
]);

const HEAD = /^(?:language_model\.)?lm_head\.(weight|scales|biases|bias)$/;
const LAYER = /^layers\.(\d{1,4})\.(.+)$/;
const MODULE_TENSOR = /^(.+)\.(weight|scales|biases|bias)$/;

/** Norms that Hugging Face keeps less 1. */
const SHIFTED_NORMS = /(?:attn_norm|post_attention_norm|attn_q_norm|attn_k_norm|output_norm)\.weight$/;

export const CONVOLUTION = /^blk\.\d+\.ssm_conv1d\.weight$/;
/** Experts in tensors of their own, which no stride leads through. */
export const SINGLE_EXPERT =
  /^(?:language_model\.model|model\.language_model|model)\.layers\.\d+\.mlp\.experts\.\d+\./;

/** GGUF's name of a tensor, or undefined for one that has no part in the model (vision, MTP). */
export function ggufName(own: string): string | undefined {
  const head = HEAD.exec(own);
  if (head !== null) return `output.${head[1]}`;
  const prefix = PREFIXES.find((each) => own.startsWith(each));
  if (prefix === undefined) return undefined;
  const rest = own.slice(prefix.length);
  const layer = LAYER.exec(rest);
  if (layer === null) return nameOf(rest, MODEL_MODULES, new Map());
  const name = nameOf(layer[2]!, LAYER_MODULES, LAYER_TENSORS);
  return name === undefined ? undefined : `blk.${Number(layer[1])}.${name}`;
}

function nameOf(
  own: string,
  modules: ReadonlyMap<string, string>,
  tensors: ReadonlyMap<string, string>,
): string | undefined {
  const whole = tensors.get(own);
  if (whole !== undefined) return whole;
  const parts = MODULE_TENSOR.exec(own);
  const module = parts === null ? undefined : modules.get(parts[1]!);
  return module === undefined ? undefined : `${module}.${parts![2]}`;
}

/** What a checkpoint would call a tensor that it does not have. */
export function likelyName(gguf: string): string {
  const layer = /^blk\.(\d+)\.(.+)$/.exec(gguf);
  const path = layer === null ? '' : `layers.${layer[1]}.`;
  const rest = layer === null ? gguf : layer[2]!;
  for (const [own, name] of LAYER_TENSORS)
    if (name === rest && rest.startsWith('ssm_')) return `${path}${own}`;
  for (const [own, name] of [...LAYER_MODULES, ...MODEL_MODULES]) {
    if (`${name}.weight` === rest) return `${path}${own}.weight`;
  }
  return gguf;
}

/** What a vector must go through; `shifted` in files whose norms lack the 1. */
export function changeOf(gguf: string, shifted: boolean): VectorChange | undefined {
  if (gguf.endsWith('.ssm_a')) return 'minus exp';
  return shifted && SHIFTED_NORMS.test(gguf) ? 'plus one' : undefined;
}
