/**
 * tokenizer.json and tokenizer_config.json as the tokenizer's metadata.
 *
 * What is taken: byte-level BPE with its vocabulary, merges and added tokens, the pre-tokenizers that this project knows
 * (by their pattern), and NFC. What a file asks for beyond that would cut text otherwise than the model learned, so it is
 * refused by name. Merges are texts ("a b") in older files and pairs in newer ones.
 */
import { join } from 'node:path';
import { MoestreamError } from '../errors.ts';
import { CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME } from './checkpoint-config.ts';
import { quoted } from './header-reader.ts';
import { HF_PATTERNS } from './pre-tokenizer.ts';
import { isObject, type JsonValue, memberOf } from './strict-json.ts';
import { readJsonFile, readTextFile } from './text-file.ts';
import { ENDS_KEY, NORMALIZER_KEY } from './tokenizer.ts';
import { type NamedValue, type NamedValues, Texts } from './value-metadata.ts';

/** ggml's token types. */
const NORMAL = 1;
const CONTROL = 3;
const USER_DEFINED = 4;
const UNUSED = 5;

/** Four times the largest vocabulary in use; ids that nothing has cost memory too. */
const TOKENS_MAX = 1 << 20;

class TokenizerFile {
  private readonly path: string;
  private readonly root: JsonValue;

  constructor(path: string, root: JsonValue) {
    this.path = path;
    this.root = root;
  }

  invalid(problem: string): MoestreamError {
    return new MoestreamError('MODEL_INVALID', `${this.path}: ${problem}`);
  }

  unsupported(what: string, value: JsonValue): MoestreamError {
    const text = quoted(typeof value === 'string' ? value : (JSON.stringify(value) ?? 'nothing'));
    return new MoestreamError('MODEL_UNSUPPORTED', `${this.path}: ${what} ${text} is not supported`);
  }

  at(...keys: string[]): JsonValue {
    return keys.reduce(memberOf, this.root);
  }

  refuseOtherModels(): void {
    const type = this.at('model', 'type');
    if (type !== 'BPE') throw this.unsupported('tokenizer model', type);
    for (const key of ['ignore_merges', 'byte_fallback']) {
      if (this.at('model', key) === true) throw this.unsupported('tokenizer setting', key);
    }
    for (const key of ['continuing_subword_prefix', 'end_of_word_suffix', 'dropout']) {
      const value = this.at('model', key);
      if (value !== null && value !== undefined && value !== '')
        throw this.unsupported(`tokenizer setting ${key}`, value);
    }
    const after = this.at('post_processor');
    if (after !== null && after !== undefined && memberOf(after, 'type') !== 'ByteLevel')
      throw this.unsupported('post-processor', memberOf(after, 'type'));
  }

  normalizer(): string | undefined {
    const normalizer = this.at('normalizer');
    if (normalizer === null || normalizer === undefined) return undefined;
    const type = memberOf(normalizer, 'type');
    if (type !== 'NFC') throw this.unsupported('normalizer', type);
    return type;
  }

  /** A split by a known pattern, then bytes. */
  preTokenizer(): string {
    const whole = this.at('pre_tokenizer');
    const steps = memberOf(whole, 'type') === 'Sequence' ? memberOf(whole, 'pretokenizers') : [whole];
    if (!Array.isArray(steps)) throw this.invalid('pre_tokenizer has no list of steps');
    let name: string | undefined;
    let isByteLevel = false;
    for (const step of steps as JsonValue[]) {
      const type = memberOf(step, 'type');
      if (type === 'Split' && name === undefined) {
        const pattern = memberOf(memberOf(step, 'pattern'), 'Regex');
        name = HF_PATTERNS.get(typeof pattern === 'string' ? pattern : '');
        if (name === undefined) throw this.unsupported('pre-tokenizer pattern', pattern);
        if (memberOf(step, 'behavior') !== 'Isolated' || memberOf(step, 'invert') === true)
          throw this.unsupported('pre-tokenizer split', memberOf(step, 'behavior'));
      } else if (type === 'ByteLevel') {
        isByteLevel = true;
        if (memberOf(step, 'add_prefix_space') === true || memberOf(step, 'use_regex') === true)
          throw this.unsupported('pre-tokenizer', step);
      } else throw this.unsupported('pre-tokenizer', type);
    }
    if (name === undefined || !isByteLevel) throw this.unsupported('pre-tokenizer', whole);
    return name;
  }

  /** Every token's text and type by its id. Ids that nothing has are unused tokens without a text. */
  tokens(): { texts: string[]; types: number[] } {
    const vocabulary = this.at('model', 'vocab');
    const added = this.at('added_tokens') ?? [];
    if (!isObject(vocabulary)) throw this.invalid('model.vocab is not an object');
    if (!Array.isArray(added)) throw this.invalid('added_tokens is not a list');
    const texts: string[] = [];
    const types: number[] = [];
    const put = (what: string, id: JsonValue, text: JsonValue, type: number): void => {
      if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= TOKENS_MAX)
        throw this.invalid(`${what} has the id ${quoted(String(id))}`);
      if (typeof text !== 'string') throw this.invalid(`${what} has no text`);
      // An added token may stand in the vocabulary too.
      if (texts[id] !== undefined && texts[id] !== text)
        throw this.invalid(`${what} has the id ${id} of ${quoted(texts[id])}`);
      texts[id] = text;
      types[id] = type;
    };
    for (const [text, id] of Object.entries(vocabulary)) put(`token ${quoted(text)}`, id, text, NORMAL);
    for (const [index, token] of (added as JsonValue[]).entries()) {
      const type = memberOf(token, 'special') === true ? CONTROL : USER_DEFINED;
      put(`added_tokens[${index}]`, memberOf(token, 'id'), memberOf(token, 'content'), type);
    }
    for (let id = 0; id < texts.length; id++) {
      texts[id] ??= '';
      types[id] ??= UNUSED;
    }
    return { texts, types };
  }

  merges(): string[] {
    const merges = this.at('model', 'merges');
    if (!Array.isArray(merges)) throw this.invalid('model.merges is not a list');
    return (merges as JsonValue[]).map((merge, rank) => {
      if (typeof merge === 'string') return merge;
      if (Array.isArray(merge) && merge.length === 2 && merge.every((piece) => typeof piece === 'string'))
        return merge.join(' ');
      throw this.invalid(`model.merges[${rank}] is not two pieces`);
    });
  }
}

/** The text of a special token as configurations name it: by itself, or in an object. */
function tokenText(value: JsonValue): JsonValue {
  return isObject(value) ? memberOf(value, 'content') : value;
}

/** The metadata of the tokenizer of a checkpoint folder. `endIds` come from other files. */
export function readTokenizerJson(folder: string, endIds: readonly number[]): NamedValues {
  const path = join(folder, TOKENIZER_NAME);
  const root = readJsonFile(path, 'any');
  if (root === undefined) {
    throw new MoestreamError('MODEL_NOT_FOUND', `${path}: no such file`, {
      hint: 'A checkpoint needs its tokenizer.json: fetch it from where the model came from.',
    });
  }
  const configPath = join(folder, TOKENIZER_CONFIG_NAME);
  const config = readJsonFile(configPath);
  const file = new TokenizerFile(path, root);
  file.refuseOtherModels();
  const { texts, types } = file.tokens();
  const normalizer = file.normalizer();
  const values = new Map<string, NamedValue>();
  const set = (key: string, field: string, value: unknown, from = path): void => {
    if (value !== undefined && value !== null) values.set(key, { path: from, field, value });
  };
  set('tokenizer.ggml.model', 'model.type', 'gpt2');
  set('tokenizer.ggml.pre', 'pre_tokenizer', file.preTokenizer());
  set('tokenizer.ggml.tokens', 'model.vocab', new Texts(texts));
  set('tokenizer.ggml.token_type', 'added_tokens', types);
  set('tokenizer.ggml.merges', 'model.merges', new Texts(file.merges()));
  set(NORMALIZER_KEY, 'normalizer', normalizer);
  const idOf = (key: string): number | undefined => {
    const text = tokenText(memberOf(config, key));
    const id = typeof text === 'string' ? texts.indexOf(text) : -1;
    return id < 0 ? undefined : id;
  };
  set('tokenizer.ggml.eos_token_id', 'eos_token', idOf('eos_token'), configPath);
  set('tokenizer.ggml.bos_token_id', 'bos_token', idOf('bos_token'), configPath);
  set('tokenizer.ggml.add_bos_token', 'add_bos_token', memberOf(config, 'add_bos_token'), configPath);
  set(ENDS_KEY, 'eos_token_id', endIds);
  set('tokenizer.chat_template', 'chat_template', ...chatTemplate(folder, config, configPath));
  return values;
}

/** The template and the file that it came from: its own file, or a field, by itself or as one of several with names. */
function chatTemplate(folder: string, config: JsonValue, configPath: string): [unknown, string] {
  const path = join(folder, CHAT_TEMPLATE_NAME);
  const own = readTextFile(path);
  if (own !== undefined) return [own, path];
  const field = memberOf(config, 'chat_template');
  if (!Array.isArray(field)) return [field, configPath];
  const named = (field as JsonValue[]).find((each) => memberOf(each, 'name') === 'default');
  return [memberOf(named, 'template'), configPath];
}
