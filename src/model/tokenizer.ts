/**
 * The tokenizer of a GGUF: text to ids as llama.cpp does it, ids to bytes.
 *
 * Byte-level BPE is @huggingface/tokenizers' work; this file builds its input from the GGUF's arrays and keeps special
 * tokens out of it: their texts are looked for here, so that the text of `<|im_end|>` becomes the token only where the
 * caller wants that. Tokens are bytes, not strings: one character may span several tokens.
 *
 * Loading a vocabulary of 248,320 takes about a second, so a model loads it when it is first asked for.
 */
import { Tokenizer as BpeTokenizer } from '@huggingface/tokenizers';
import { MoestreamError } from '../errors.ts';
import { bytesOfAlphabet } from './byte-alphabet.ts';
import type { Gguf } from './gguf.ts';
import type { GgufStrings } from './gguf-metadata.ts';

export interface EncodeOptions {
  /** Whether the texts of control tokens become those tokens; user text should be encoded without. */
  readonly parseSpecial: boolean;
}

/** ggml's token types; 1 is a normal token. */
const TYPE_UNKNOWN = 2;
const TYPE_CONTROL = 3;
const TYPE_USER_DEFINED = 4;
const TYPE_UNUSED = 5;
const TYPE_BYTE = 6;

const VOCABULARY_MAX = 1 << 24;

/** How text is cut before BPE, by `tokenizer.ggml.pre`. Only this family's two are known. */
const PRE_TOKENIZERS: Readonly<Record<string, string>> = {
  qwen35:
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  qwen2:
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

/** Texts of tokens that end a turn in this family, beside the ones that the metadata names. */
const END_TEXTS = new Set(['<|endoftext|>', '<|im_end|>', '<|fim_pad|>', '<|repo_name|>', '<|file_sep|>']);

export class Tokenizer {
  /** Tokens that the vocabulary has; a model's embedding may have more rows. */
  readonly vocabularySize: number;
  /** Tokens that end an answer. */
  readonly eogIds: ReadonlySet<number>;
  private readonly bpe: BpeTokenizer;
  private readonly texts: GgufStrings;
  private readonly types: readonly number[];
  /** Special tokens by text. */
  private readonly specials: ReadonlyMap<string, number>;
  private readonly anySpecial: RegExp | undefined;
  private readonly userDefinedOnly: RegExp | undefined;
  private readonly firstId: number | undefined;

  constructor(gguf: Gguf) {
    const { metadata } = gguf;
    this.texts = metadata.strings('tokenizer.ggml.tokens');
    this.vocabularySize = this.texts.length;
    if (this.vocabularySize === 0 || this.vocabularySize > VOCABULARY_MAX) {
      throw metadata.invalid('tokenizer.ggml.tokens', `has ${this.vocabularySize} entries`);
    }
    this.types = readTypes(gguf, this.vocabularySize);
    this.bpe = createBpe(gguf, this.texts);
    const specials = [...this.types.keys()].filter(
      (id) => isSpecial(this.types[id]!) && this.text(id) !== '',
    );
    this.specials = new Map(specials.map((id) => [this.text(id), id]));
    this.anySpecial = alternatives([...this.specials.keys()]);
    const userDefined = specials.filter((id) => this.types[id] === TYPE_USER_DEFINED);
    this.userDefinedOnly = alternatives(userDefined.map((id) => this.text(id)));
    this.eogIds = readEnds(gguf, specials, (id) => this.text(id));
    this.firstId = readBos(gguf, this.vocabularySize);
  }

  /** The ids of a text, preceded by the beginning-of-text token where the file asks for one. */
  encode(text: string, { parseSpecial }: EncodeOptions): number[] {
    const ids = this.firstId === undefined ? [] : [this.firstId];
    const special = parseSpecial ? this.anySpecial : this.userDefinedOnly;
    let from = 0;
    for (const match of special === undefined ? [] : text.matchAll(special)) {
      this.encodePlain(text.slice(from, match.index), ids);
      ids.push(this.specials.get(match[0])!);
      from = match.index + match[0].length;
    }
    this.encodePlain(text.slice(from), ids);
    return ids;
  }

  /** The bytes of a token; a special token has those of its text. */
  tokenBytes(id: number): Uint8Array {
    const text = this.text(id);
    const type = this.types[id]!;
    if (type === TYPE_BYTE) {
      const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(text);
      if (byte !== null) return Uint8Array.of(Number.parseInt(byte[1]!, 16));
    }
    const normal = isSpecial(type) || type === TYPE_UNUSED ? undefined : bytesOfAlphabet(text);
    return normal ?? new TextEncoder().encode(text);
  }

  /** Whether a token shows nothing: control tokens and padding. */
  isControl(id: number): boolean {
    return (
      this.types[id] === TYPE_CONTROL || this.types[id] === TYPE_UNKNOWN || this.types[id] === TYPE_UNUSED
    );
  }

  /** The id of a special token by its text. */
  specialId(text: string): number | undefined {
    return this.specials.get(text);
  }

  private text(id: number): string {
    return this.texts.at(id) ?? '';
  }

  private encodePlain(text: string, into: number[]): void {
    if (text === '') return;
    // A push of hundreds of thousands of arguments would overflow the stack.
    for (const id of this.bpe.encode(text).ids) into.push(id);
  }
}

function isSpecial(type: number): boolean {
  return type === TYPE_CONTROL || type === TYPE_USER_DEFINED || type === TYPE_UNKNOWN;
}

function readTypes(gguf: Gguf, count: number): number[] {
  const key = 'tokenizer.ggml.token_type';
  const types = gguf.metadata.optionalIntegers(key, 0, TYPE_BYTE) ?? new Array<number>(count).fill(1);
  if (types.length === count) return types;
  throw gguf.metadata.invalid(key, `has ${types.length} entries for ${count} tokens`);
}

function createBpe(gguf: Gguf, texts: GgufStrings): BpeTokenizer {
  const { metadata } = gguf;
  const path = gguf.files[0]!.path;
  const model = metadata.string('tokenizer.ggml.model');
  if (model !== 'gpt2') {
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${path}: tokenizer "${model}" is not supported, only "gpt2" (byte-level BPE)`,
    );
  }
  const pre = metadata.optionalString('tokenizer.ggml.pre') ?? '(none)';
  const regex = PRE_TOKENIZERS[pre];
  if (regex === undefined) {
    const known = Object.keys(PRE_TOKENIZERS).join(', ');
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${path}: pre-tokenizer "${pre}" is not supported, only ${known}`,
    );
  }
  const vocab: Record<string, number> = Object.create(null) as Record<string, number>;
  // The first of two equal texts counts, as in llama.cpp.
  for (let id = texts.length - 1; id >= 0; id--) vocab[textAt(gguf, 'tokenizer.ggml.tokens', texts, id)] = id;
  const tokenizerJson = {
    version: '1.0',
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
      ],
    },
    model: { type: 'BPE', vocab, merges: readMerges(gguf), ignore_merges: false },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    added_tokens: [],
  };
  return new BpeTokenizer(tokenizerJson as never, {} as never);
}

function textAt(gguf: Gguf, key: string, texts: GgufStrings, index: number): string {
  const text = texts.at(index);
  if (text === undefined) throw gguf.metadata.invalid(`${key}[${index}]`, 'is not UTF-8');
  return text;
}

function readMerges(gguf: Gguf): string[] {
  const key = 'tokenizer.ggml.merges';
  const merges = gguf.metadata.strings(key);
  return Array.from({ length: merges.length }, (_, index) => {
    const merge = textAt(gguf, key, merges, index);
    if (/^\S+ \S+$/.test(merge)) return merge;
    throw gguf.metadata.invalid(`${key}[${index}]`, 'is not two pieces with a blank between them');
  });
}

function readEnds(gguf: Gguf, specials: readonly number[], text: (id: number) => string): Set<number> {
  const ends = new Set(specials.filter((id) => END_TEXTS.has(text(id))));
  for (const name of ['eos', 'eot', 'eom']) {
    const id = gguf.metadata.optionalInteger(`tokenizer.ggml.${name}_token_id`, 0, VOCABULARY_MAX);
    if (id !== undefined) ends.add(id);
  }
  return ends;
}

function readBos(gguf: Gguf, vocabularySize: number): number | undefined {
  if (gguf.metadata.optionalBoolean('tokenizer.ggml.add_bos_token') !== true) return undefined;
  return gguf.metadata.integer('tokenizer.ggml.bos_token_id', 0, vocabularySize - 1);
}

/** A pattern that finds any of the texts, the longest where several begin at one place. */
function alternatives(texts: readonly string[]): RegExp | undefined {
  if (texts.length === 0) return undefined;
  const longestFirst = [...texts].sort((a, b) => b.length - a.length);
  return new RegExp(longestFirst.map((text) => text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')).join('|'), 'g');
}
