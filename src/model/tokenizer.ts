import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';
import type { Gguf } from './gguf.ts';

export interface Tokenizer {
  readonly vocabularySize: number; readonly eogIds: ReadonlySet<number>;
  encode(text: string, options: { parseSpecial: boolean }): number[];
  tokenBytes(id: number): Uint8Array;
  isControl(id: number): boolean;
}
export function loadTokenizer(gguf: Gguf): Tokenizer {
  const m = gguf.metadata;
  const tokens = m.plain('tokenizer.ggml.tokens') as string[]; const merges = m.plain('tokenizer.ggml.merges') as string[]; const types = m.plain('tokenizer.ggml.token_type') as number[];
  const regex = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
  const vocab = Object.fromEntries(tokens.map((t, i) => [t, i]));
  const hf = new HfTokenizer({ normalizer: null, pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false }, { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false }] }, model: { type: 'BPE', vocab, merges, ignore_merges: false }, post_processor: null, decoder: { type: 'ByteLevel' }, added_tokens: tokens.flatMap((t, i) => types[i] === 3 || types[i] === 4 ? [{ id: i, content: t, special: types[i] === 3 }] : []) } as never, {} as never);
  const bs = [...Array(94).keys()].map((i) => i + 33).concat([...Array(12).keys()].map((i) => i + 161), [...Array(82).keys()].map((i) => i + 174));
  const map = new Map<string, number>(); let n = 0;
  for (let b = 0; b < 256; b++) map.set(String.fromCodePoint(bs.includes(b) ? b : 256 + n++), b);
  const eog = new Set(tokens.flatMap((t, i) => ['<|endoftext|>', '<|im_end|>'].includes(t) ? [i] : []));
  return {
    vocabularySize: tokens.length, eogIds: eog,
    encode: (text) => hf.encode(text).ids as number[],
    tokenBytes: (id) => types[id] === 1 ? Uint8Array.from([...tokens[id]!].map((c) => map.get(c) ?? 63)) : new TextEncoder().encode(tokens[id]!),
    isControl: (id) => types[id] === 3,
  };
}
