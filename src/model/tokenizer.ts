/**
 * The tokenizer of a model: text to ids as llama.cpp does it, ids to bytes.
 *
 * Text is cut into pieces (pre-tokenizer.ts), each piece's bytes are joined to tokens (byte-pairs.ts). The texts of
 * special tokens are looked for before that, so that the text of `<|im_end|>` becomes the token only where the caller
 * wants it. As in llama.cpp, user-defined tokens such as `<think>` are text with an id of its own and always found;
 * control tokens only with `parseSpecial`. Text is not normalised, unless the model's files ask for it (NFC). Tokens are bytes, not strings: one character may span
 * several tokens. Invariant: without special tokens, the bytes of the ids are the UTF-8 of the text.
 *
 * A vocabulary of 248,320 loads in 0.6 s and 10 MB, when it is first asked for; prose goes at 4 million tokens/s.
 */
import { MoestreamError } from '../errors.ts';
import { bytesOfAlphabet } from './byte-alphabet.ts';
import { BytePairs } from './byte-pairs.ts';
import { quoted } from './header-reader.ts';
import type { Metadata, ModelSource, TextList } from './model-source.ts';
import { PRE_TOKENIZERS, PreTokenizer } from './pre-tokenizer.ts';
import { SPECIAL_CHARS_MAX, SpecialTexts } from './special-texts.ts';

export interface EncodeOptions {
  /** Whether the texts of control tokens become those tokens; user text should be encoded without. */
  readonly parseSpecial: boolean;
}

/** ggml's token types; 1 is a normal token. */
const TYPE_NORMAL = 1;
const TYPE_UNKNOWN = 2;
const TYPE_CONTROL = 3;
const TYPE_USER_DEFINED = 4;
const TYPE_UNUSED = 5;
const TYPE_BYTE = 6;

const TOKENS_KEY = 'tokenizer.ggml.tokens';
/** Not a key of GGUF: a tokenizer.json says how text is normalised, and that any number of tokens end an answer. */
export const NORMALIZER_KEY = 'tokenizer.normalizer';
export const ENDS_KEY = 'tokenizer.end_token_ids';
/** Heap entries of a piece hold positions below 2^29 bytes; a character takes at most three. */
const TEXT_CHARS_MAX = 2 ** 27;
/** Most words recur: their ids are remembered until there are this many, then forgotten all at once (some 3 MB). */
const REMEMBERED_MAX = 1 << 14;
const REMEMBERED_CHARS_MAX = 32;

/** Texts of tokens that end a turn in this family, beside the ones that the metadata names. */
const END_TEXTS = new Set(['<|endoftext|>', '<|im_end|>', '<|fim_pad|>', '<|repo_name|>', '<|file_sep|>']);

const END_FIRST_BYTE = '<'.charCodeAt(0);
const END_BYTES_MAX = Math.max(...[...END_TEXTS].map((text) => text.length));

export class Tokenizer {
  /** Tokens that the vocabulary has; a model's embedding may have more rows. */
  readonly vocabularySize: number;
  /** Tokens that end an answer. */
  readonly eogIds: ReadonlySet<number>;
  /** The beginning-of-text token, where the file asks for one. */
  readonly firstId: number | undefined;
  private readonly texts: TextList;
  private readonly types: Uint8Array;
  private readonly preTokenizer: PreTokenizer;
  private readonly pairs: BytePairs;
  /** Special tokens by text. */
  private readonly specials = new Map<string, number>();
  private readonly anySpecial = new SpecialTexts();
  private readonly userDefinedOnly = new SpecialTexts();
  private readonly normalizes: boolean;
  private readonly remembered = new Map<string, readonly number[]>();
  private readonly encoder = new TextEncoder();

  constructor(source: ModelSource) {
    const { metadata } = source;
    this.preTokenizer = readPreTokenizer(source);
    this.texts = metadata.strings(TOKENS_KEY);
    this.vocabularySize = this.texts.length;
    if (this.vocabularySize === 0) throw metadata.invalid(TOKENS_KEY, 'is empty');
    this.types = readTypes(metadata, this.vocabularySize);
    this.readSpecials(metadata);
    this.pairs = new BytePairs(metadata);
    this.eogIds = readEnds(metadata, this.specials, this.vocabularySize);
    this.firstId = readBos(metadata, this.vocabularySize);
    this.normalizes = metadata.optionalString(NORMALIZER_KEY) === 'NFC';
  }

  /** The ids of a text, preceded by the beginning-of-text token where the file asks for one. */
  encode(text: string, { parseSpecial }: EncodeOptions): number[] {
    if (text.length > TEXT_CHARS_MAX) {
      throw new MoestreamError(
        'USAGE',
        `a text of ${text.length} characters, the limit is ${TEXT_CHARS_MAX}`,
      );
    }
    const ids = this.firstId === undefined ? [] : [this.firstId];
    const specials = parseSpecial ? this.anySpecial : this.userDefinedOnly;
    let from = 0;
    for (let match = specials.find(text, 0); match !== undefined; match = specials.find(text, from)) {
      this.encodePlain(text.slice(from, match.start), ids);
      ids.push(match.id);
      from = match.end;
    }
    this.encodePlain(text.slice(from), ids);
    return ids;
  }

  /** The bytes of a token; a special token has those of its text. */
  tokenBytes(id: number): Uint8Array {
    const text = this.texts.at(id);
    if (text === undefined) return new Uint8Array(this.texts.bytesAt(id));
    const type = this.types[id]!;
    if (type === TYPE_BYTE) {
      const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(text);
      if (byte !== null) return Uint8Array.of(Number.parseInt(byte[1]!, 16));
    }
    const normal = isSpecial(type) || type === TYPE_UNUSED ? undefined : bytesOfAlphabet(text);
    return normal ?? this.encoder.encode(text);
  }

  /** Whether a token shows nothing: control tokens and padding. */
  isControl(id: number): boolean {
    const type = this.types[id];
    return type === TYPE_CONTROL || type === TYPE_UNKNOWN || type === TYPE_UNUSED;
  }

  /** The id of a special token by its text. */
  specialId(text: string): number | undefined {
    return this.specials.get(text);
  }

  private encodePlain(text: string, into: number[]): void {
    this.preTokenizer.cut(this.normalizes ? text.normalize('NFC') : text, (piece) => {
      if (piece.length > REMEMBERED_CHARS_MAX) return this.pairs.encode(this.encoder.encode(piece), into);
      for (const id of this.idsOf(piece)) into.push(id);
    });
  }

  private idsOf(piece: string): readonly number[] {
    const known = this.remembered.get(piece);
    if (known !== undefined) return known;
    const ids: number[] = [];
    this.pairs.encode(this.encoder.encode(piece), ids);
    if (this.remembered.size >= REMEMBERED_MAX) this.remembered.clear();
    this.remembered.set(piece, ids);
    return ids;
  }

  /**
   * What ends a turn is a control token, whatever type the file gives it: conversions that call `<|im_end|>` a normal
   * token are in circulation, and an answer from one would never end. llama.cpp does the same.
   */
  private endsTurn(id: number): boolean {
    const bytes = this.texts.bytesAt(id);
    if (bytes[0] !== END_FIRST_BYTE || bytes.length > END_BYTES_MAX) return false;
    const text = this.texts.at(id);
    return text !== undefined && END_TEXTS.has(text);
  }

  private readSpecials(metadata: Metadata): void {
    for (let id = 0; id < this.vocabularySize; id++) {
      if (this.endsTurn(id)) this.types[id] = TYPE_CONTROL;
      if (!isSpecial(this.types[id]!)) continue;
      const text = this.texts.at(id);
      if (text === undefined) throw metadata.invalid(`${TOKENS_KEY}[${id}]`, 'is not UTF-8');
      if (text === '') continue;
      if (text.length > SPECIAL_CHARS_MAX) {
        throw metadata.invalid(
          `${TOKENS_KEY}[${id}]`,
          `is special and longer than ${SPECIAL_CHARS_MAX} characters`,
        );
      }
      this.specials.set(text, id);
      this.anySpecial.add(text, id);
      if (this.types[id] === TYPE_USER_DEFINED) this.userDefinedOnly.add(text, id);
    }
  }
}

function isSpecial(type: number): boolean {
  return type === TYPE_CONTROL || type === TYPE_USER_DEFINED || type === TYPE_UNKNOWN;
}

function readPreTokenizer(source: ModelSource): PreTokenizer {
  const { metadata } = source;
  const unsupported = (what: string, value: string, known: string): MoestreamError =>
    new MoestreamError(
      'MODEL_UNSUPPORTED',
      `${source.files[0]!.path}: ${what} ${quoted(value)} is not supported, only ${known}`,
    );
  const model = metadata.string('tokenizer.ggml.model');
  if (model !== 'gpt2') throw unsupported('tokenizer', model, '"gpt2" (byte-level BPE)');
  const name = metadata.optionalString('tokenizer.ggml.pre') ?? '(none)';
  if (!PRE_TOKENIZERS.includes(name)) throw unsupported('pre-tokenizer', name, PRE_TOKENIZERS.join(', '));
  return new PreTokenizer(name);
}

function readTypes(metadata: Metadata, count: number): Uint8Array {
  const key = 'tokenizer.ggml.token_type';
  const types = metadata.optionalIntegers(key, 0, TYPE_BYTE);
  if (types === undefined) return new Uint8Array(count).fill(TYPE_NORMAL);
  if (types.length === count) return Uint8Array.from(types);
  throw metadata.invalid(key, `has ${types.length} entries for ${count} tokens`);
}

function readEnds(metadata: Metadata, specials: ReadonlyMap<string, number>, size: number): Set<number> {
  const ends = new Set<number>();
  for (const [text, id] of specials) if (END_TEXTS.has(text)) ends.add(id);
  for (const id of metadata.optionalIntegers(ENDS_KEY, 0, size - 1) ?? []) ends.add(id);
  for (const name of ['eos', 'eot', 'eom']) {
    const id = metadata.optionalInteger(`tokenizer.ggml.${name}_token_id`, 0, size - 1);
    if (id !== undefined) ends.add(id);
  }
  return ends;
}

function readBos(metadata: Metadata, vocabularySize: number): number | undefined {
  if (metadata.optionalBoolean('tokenizer.ggml.add_bos_token') !== true) return undefined;
  return metadata.integer('tokenizer.ggml.bos_token_id', 0, vocabularySize - 1);
}
