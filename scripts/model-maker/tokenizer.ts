/**
 * The tables of a small byte-level BPE tokenizer that works: any text can be encoded and decoded again.
 *
 * Why learned and not copied: the vocabulary of a published model is 11 MB of somebody's data, and random weights do not
 * care. Invariant: the first 256 tokens are the bytes, every merge joins two earlier tokens, the special tokens follow,
 * and `[PADn]` tokens fill the vocabulary, so that the tables are as long as the model's matrices.
 * The number behind it: the text below gives 219 merges, enough that common words of a prompt become single tokens.
 */
import { VOCABULARY_MIN } from './shapes.ts';

/** What `tokenizer.ggml.token_type` counts. */
const NORMAL = 1;
const CONTROL = 3;
const USER_DEFINED = 4;
const UNUSED = 5;

const END_OF_TEXT = '<|endoftext|>';
const END_OF_TURN = '<|im_end|>';

const SPECIAL_TOKENS: readonly (readonly [text: string, type: number])[] = [
  [END_OF_TEXT, CONTROL],
  ['<|im_start|>', CONTROL],
  [END_OF_TURN, CONTROL],
  ['<think>', USER_DEFINED],
  ['</think>', USER_DEFINED],
];

const TEXT = `The engine reads the experts of a layer from the disk while the machine works on what it has, and a token \
comes out at the end. A user asks the assistant a question; the system answers in the order in which words were learned. \
When memory is small, the cache keeps the experts that were chosen most often and lets the others go. There is nothing to \
learn from random weights, but they take as long to read as good ones, and this is what we want to know: how many tokens \
per second, how many bytes per token, and which part of the time was spent waiting. Hello, world! What is the answer?`;

/** The characters that stand for the 256 bytes: printable ones for themselves, the others from U+0100 on. */
function byteAlphabet(): readonly string[] {
  const isPrintable = (byte: number): boolean =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++));
}

/** A word as its tokens so far, and how often the text has it. */
interface Word {
  parts: string[];
  readonly count: number;
}

function wordsOf(text: string, alphabet: readonly string[]): Word[] {
  const counts = new Map<string, number>();
  for (const [word] of text.matchAll(/ ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+/gu)) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return [...counts].map(([word, count]) => ({
    parts: Array.from(Buffer.from(word), (byte) => alphabet[byte]!),
    count,
  }));
}

/** The two tokens that stand side by side most often; the first found among equals. */
function commonestPair(words: readonly Word[]): readonly [string, string] | undefined {
  const counts = new Map<string, number>();
  let best: string | undefined;
  for (const { parts, count } of words) {
    for (let i = 1; i < parts.length; i++) {
      const pair = `${parts[i - 1]} ${parts[i]}`;
      counts.set(pair, (counts.get(pair) ?? 0) + count);
    }
  }
  for (const [pair, count] of counts) {
    if (best === undefined || count > counts.get(best)!) best = pair;
  }
  return best?.split(' ') as [string, string] | undefined;
}

function joinPair(parts: readonly string[], left: string, right: string): string[] {
  const joined: string[] = [];
  for (const part of parts) {
    if (part === right && joined.at(-1) === left) joined[joined.length - 1] = left + right;
    else joined.push(part);
  }
  return joined;
}

export interface TokenizerTables {
  readonly tokens: readonly string[];
  readonly types: readonly number[];
  readonly merges: readonly string[];
  readonly endOfTurnId: number;
  readonly paddingId: number;
}

export function tokenizerTables(vocabulary: number): TokenizerTables {
  const alphabet = byteAlphabet();
  // In a set, because two different merges can spell the same token.
  const learned = new Set(alphabet);
  const merges: string[] = [];
  const words = wordsOf(TEXT, alphabet);
  const tokensMax = vocabulary - (VOCABULARY_MIN - alphabet.length);
  for (let pair = commonestPair(words); pair !== undefined; pair = commonestPair(words)) {
    const [left, right] = pair;
    if (learned.size === tokensMax && !learned.has(left + right)) break;
    learned.add(left + right);
    merges.push(`${left} ${right}`);
    for (const word of words) word.parts = joinPair(word.parts, left, right);
  }
  const tokens = [...learned, ...SPECIAL_TOKENS.map(([text]) => text)];
  const types = [...Array.from(learned, () => NORMAL), ...SPECIAL_TOKENS.map(([, type]) => type)];
  for (let id = tokens.length; id < vocabulary; id++) {
    tokens.push(`[PAD${id}]`);
    types.push(UNUSED);
  }
  const endOfTurnId = tokens.indexOf(END_OF_TURN);
  return { tokens, types, merges, endOfTurnId, paddingId: tokens.indexOf(END_OF_TEXT) };
}

/** ChatML, with a thought that is opened, or opened and closed again, before the answer. */
export const CHAT_TEMPLATE = [
  "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}",
  "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}",
  '{%- if enable_thinking is defined and enable_thinking is false -%}',
  "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- else -%}{{- '<think>\\n' -}}{%- endif -%}{%- endif -%}",
].join('');
