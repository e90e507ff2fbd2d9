import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import { openModelText } from '../../dist/model/model.js';
import type { Tokenizer } from '../../dist/model/tokenizer.js';
import {
  array,
  BYTE_CHARACTERS,
  bool,
  buildGguf,
  type MetadataValue,
  pairVocabulary,
  string,
  temporaryFiles,
  u32,
  type VocabularySpec,
  vocabularyMetadata,
} from '../support/gguf-builder.js';
import { BUILT_IN_MODEL, fixture, readJson } from '../support/golden.js';

interface Case {
  readonly text: string;
  readonly repeat?: number;
  readonly parseSpecial?: boolean;
  readonly ids: string;
}

type PreTokenizer = 'qwen35' | 'qwen2';

interface Golden {
  readonly about: string;
  readonly builtIn: Case[];
  readonly latin1: string[];
  readonly specials: [string, number][];
  readonly pairs: Record<PreTokenizer, Case[]>;
  readonly codePoints: Record<PreTokenizer, string[]> & { line: string; newer: string };
}

const files = temporaryFiles();
const golden = readJson<Golden>(fixture('tokenizer-golden.json'));
const builtIn = openModelText(BUILT_IN_MODEL).tokenizer;

function load(
  vocabulary: VocabularySpec,
  changes: Record<string, MetadataValue | undefined> = {},
): Tokenizer {
  const metadata: Record<string, MetadataValue> = { ...vocabularyMetadata(vocabulary) };
  for (const [key, value] of Object.entries(changes)) {
    if (value === undefined) delete metadata[key];
    else metadata[key] = value;
  }
  return openModelText(files.write('vocabulary.gguf', buildGguf({ metadata }).bytes)).tokenizer;
}

const pairs: Record<PreTokenizer, Tokenizer> = {
  qwen35: load(pairVocabulary('qwen35', golden.specials)),
  qwen2: load(pairVocabulary('qwen2', golden.specials)),
};

const encodePlain = (tokenizer: Tokenizer, text: string): number[] =>
  tokenizer.encode(text, { parseSpecial: false });

/** `5x3` in the golden file is 5 5 5. */
function unpack(ids: string): number[] {
  if (ids === '') return [];
  return ids.split(' ').flatMap((each) => {
    const [id, count = '1'] = each.split('x');
    return new Array<number>(Number(count)).fill(Number(id));
  });
}

function checkCases(tokenizer: Tokenizer, cases: readonly Case[]): void {
  for (const { text, repeat = 1, parseSpecial = false, ids } of cases) {
    const label = JSON.stringify(text.slice(0, 60));
    expect(tokenizer.encode(text.repeat(repeat), { parseSpecial }), label).toEqual(unpack(ids));
  }
}

/** Every id is asked for once: a test has millions of them. */
function bytesOf(tokenizer: Tokenizer, ids: readonly number[]): Buffer {
  const known = new Map([...new Set(ids)].map((id) => [id, tokenizer.tokenBytes(id)]));
  return Buffer.concat(ids.map((id) => known.get(id)!));
}

describe('ids are those of llama.cpp', () => {
  it('the golden file holds what it should', () => {
    expect(golden.about).toMatch(/llama\.cpp v\d/);
    const all = golden.builtIn.map((each) => each.text).join('');
    const seen = new Set(Buffer.from(all));
    // All bytes that UTF-8 has.
    const possible = Array.from({ length: 256 }, (_, byte) => byte).filter(
      (byte) => byte < 0xc0 || (byte > 0xc1 && byte < 0xf5),
    );
    expect(possible.filter((byte) => !seen.has(byte))).toEqual([]);
    expect(golden.builtIn.length).toBeGreaterThan(140);
  });

  it('built-in vocabulary', () => checkCases(builtIn, golden.builtIn));

  it('built-in vocabulary, every code point up to U+00FF alone and in context', () => {
    for (let point = 0; point < 256; point++) {
      const c = String.fromCodePoint(point);
      const [alone, context] = golden.latin1[point]!.split('; ') as [string, string];
      expect(encodePlain(builtIn, c), `U+${point.toString(16)}`).toEqual(unpack(alone));
      const text = `a${c}b ${c}. ${c}a ${c}1${c}! ${c}${c}\n`;
      expect(encodePlain(builtIn, text), `U+${point.toString(16)}`).toEqual(unpack(context));
    }
  });

  describe.each(['qwen35', 'qwen2'] as const)('%s, where every cut shows', (pre) => {
    it('texts and special tokens', () => checkCases(pairs[pre], golden.pairs[pre]));

    it('every code point of the first two planes', () => {
      const newer = golden.codePoints.newer.split(' ').map((range) => {
        const [from, to = from] = range.split('-').map((digits) => Number.parseInt(digits, 16));
        return [from!, to!] as const;
      });
      const isNewer = (point: number): boolean => newer.some(([from, to]) => point >= from && point <= to);
      for (const [block, expected] of golden.codePoints[pre].entries()) {
        const hash = createHash('sha256');
        for (let point = block * 4096; point < (block + 1) * 4096; point++) {
          if ((point >= 0xd800 && point < 0xe000) || isNewer(point)) continue;
          const line = golden.codePoints.line
            .replaceAll('\\n', '\n')
            .replaceAll('{c}', () => String.fromCodePoint(point));
          hash.update(`${encodePlain(pairs[pre], line).join()}\n`);
        }
        const name = `from U+${(block * 4096).toString(16)}`;
        expect(hash.digest('hex').slice(0, 16), name).toBe(expected);
      }
    });
  });
});

describe('round trips', () => {
  /** Ordinary and odd code units, lone surrogates among them, and texts that mean something to a tokenizer. */
  const unit = fc.oneof(
    { weight: 4, arbitrary: fc.string({ unit: 'binary', maxLength: 12 }) },
    { weight: 2, arbitrary: fc.string({ unit: 'grapheme', maxLength: 12 }) },
    {
      weight: 1,
      arbitrary: fc.integer({ min: 0xd800, max: 0xdfff }).map((code) => String.fromCharCode(code)),
    },
    {
      weight: 3,
      arbitrary: fc.constantFrom(
        ' ',
        '  ',
        '\n',
        '\r\n',
        '\t',
        "'s",
        "'LL",
        '<|im_end|>',
        '<user>',
        '<|',
        'é',
        '1',
      ),
    },
  );
  const text = fc.array(unit, { maxLength: 40 }).map((units) => units.join(''));

  it.each([
    ['built-in', () => builtIn],
    ['qwen35', () => pairs.qwen35],
    ['qwen2', () => pairs.qwen2],
  ])('%s: the bytes of the ids are the UTF-8 of the text', (_, tokenizer) => {
    fc.assert(
      fc.property(text, fc.boolean(), (value, parseSpecial) => {
        const ids = tokenizer().encode(value, { parseSpecial });
        expect(bytesOf(tokenizer(), ids)).toEqual(Buffer.from(value.toWellFormed()));
      }),
      { numRuns: 1500 },
    );
  });

  it('lone surrogates become U+FFFD', () => {
    for (const lone of ['\ud800', '\udfff', 'a\ud83d b', '\ude00\ud83d']) {
      const ids = encodePlain(builtIn, lone);
      expect(ids).toEqual(encodePlain(builtIn, lone.toWellFormed()));
      expect(bytesOf(builtIn, ids).toString()).toBe(lone.toWellFormed());
    }
  });

  it('the second time a text gives the same ids as the first', () => {
    const value = `${'the cat sat on the mat '.repeat(20)}${'unusual-ly '.repeat(5)}`;
    const first = encodePlain(builtIn, value);
    expect(encodePlain(builtIn, value)).toEqual(first);
    first.length = 0;
    expect(encodePlain(builtIn, value).length).toBeGreaterThan(0);
  });
});

describe('special tokens', () => {
  it('of the built-in model', () => {
    expect(builtIn.vocabularySize).toBe(8192);
    expect([...builtIn.eogIds].sort()).toEqual([8189, 8191]);
    expect(builtIn.specialId('<|im_start|>')).toBe(8190);
    expect(builtIn.specialId('the')).toBeUndefined();
    expect([8188, 8189, 8190, 8191].map((id) => builtIn.isControl(id))).toEqual([false, true, true, true]);
    expect(Buffer.from(builtIn.tokenBytes(8190)).toString()).toBe('<|im_start|>');
    const asked = builtIn.encode('<|im_start|>user\n', { parseSpecial: true });
    expect(asked[0]).toBe(8190);
    expect(builtIn.encode('<|im_start|>user\n', { parseSpecial: false })).not.toContain(8190);
  });

  const vocabulary = (more: readonly (readonly [string, number])[], metadata = {}): VocabularySpec => ({
    tokens: [...BYTE_CHARACTERS, ...more.map(([text]) => text)],
    types: [...BYTE_CHARACTERS.map(() => 1), ...more.map(([, type]) => type)],
    merges: [],
    more: metadata,
  });

  it('user-defined ones are always found, control and unknown ones on request, unused ones never', () => {
    const tokenizer = load(
      vocabulary([
        ['<user>', 4],
        ['<control>', 3],
        ['<unknown>', 2],
        ['<unused>', 5],
      ]),
    );
    const text = '<user><control><unknown><unused>';
    const plain = (part: string): number[] => [...Buffer.from(part)];
    expect(tokenizer.encode(text, { parseSpecial: true })).toEqual([256, 257, 258, ...plain('<unused>')]);
    expect(tokenizer.encode(text, { parseSpecial: false })).toEqual([
      256,
      ...plain('<control><unknown><unused>'),
    ]);
    expect([256, 257, 258, 259, 65].map((id) => tokenizer.isControl(id))).toEqual([
      false,
      true,
      true,
      true,
      false,
    ]);
    for (const [index, name] of ['<user>', '<control>', '<unknown>', '<unused>'].entries()) {
      expect(Buffer.from(tokenizer.tokenBytes(256 + index)).toString()).toBe(name);
    }
  });

  it('the longer of two that begin at one place counts, and pattern characters are only text', () => {
    const tokenizer = load(
      vocabulary([
        ['<a', 4],
        ['<a.*b>', 4],
        ['(x|y)+', 4],
        ['^$', 4],
      ]),
    );
    expect(encodePlain(tokenizer, '<a.*b><a^$(x|y)+<a.xb>')).toEqual([
      257,
      256,
      259,
      258,
      256,
      ...Buffer.from('.xb>'),
    ]);
  });

  it('what ends an answer: by name in the metadata, or by its text', () => {
    const tokens: [string, number][] = [
      ['<|im_end|>', 3],
      ['<|endoftext|>', 3],
      ['<|fim_pad|>', 3],
      ['<|repo_name|>', 3],
      ['<|file_sep|>', 3],
      ['<|im_start|>', 3],
      ['stop', 1],
    ];
    expect([...load(vocabulary(tokens)).eogIds].sort()).toEqual([256, 257, 258, 259, 260]);
    const named = load(vocabulary(tokens.slice(5), { 'tokenizer.ggml.eos_token_id': u32(257) }));
    expect([...named.eogIds]).toEqual([257]);
    for (const name of ['eot', 'eom']) {
      const other = load(vocabulary(tokens.slice(5), { [`tokenizer.ggml.${name}_token_id`]: u32(65) }));
      expect([...other.eogIds]).toEqual([65]);
    }
  });

  it.each([1, 4])('what ends an answer is a control token even where the file calls it type %d', (type) => {
    const tokenizer = load(vocabulary([['<|im_end|>', type]]));
    expect([...tokenizer.eogIds]).toEqual([256]);
    expect(tokenizer.isControl(256)).toBe(true);
    expect(tokenizer.encode('<|im_end|>', { parseSpecial: true })).toEqual([256]);
    expect(tokenizer.encode('<|im_end|>', { parseSpecial: false })).toEqual(
      [...Buffer.from('<|im_end|>')].map(byteId),
    );
  });

  /** The builder's vocabularies begin with the bytes in order. */
  const byteId = (byte: number): number => byte;

  it('a beginning of text where the file asks for one', () => {
    const bos = { 'tokenizer.ggml.bos_token_id': u32(256) };
    const tokens: [string, number][] = [['<s>', 3]];
    expect(encodePlain(load(vocabulary(tokens, bos)), 'a')).toEqual([97]);
    const off = { ...bos, 'tokenizer.ggml.add_bos_token': bool(false) };
    expect(encodePlain(load(vocabulary(tokens, off)), 'a')).toEqual([97]);
    const on = { ...bos, 'tokenizer.ggml.add_bos_token': bool(true) };
    expect(encodePlain(load(vocabulary(tokens, on)), 'a')).toEqual([256, 97]);
    expect(encodePlain(load(vocabulary(tokens, on)), '')).toEqual([256]);
    expect(() => load(vocabulary(tokens, { 'tokenizer.ggml.add_bos_token': bool(true) }))).toThrow(
      /"tokenizer.ggml.bos_token_id" is missing/,
    );
    expect(() => load(vocabulary(tokens, { ...on, 'tokenizer.ggml.bos_token_id': u32(257) }))).toThrow(
      /"tokenizer.ggml.bos_token_id" is 257/,
    );
  });

  it('a byte token is that byte', () => {
    const tokenizer = load(
      vocabulary([
        ['<0xE2>', 6],
        ['<0x0a>', 6],
        ['<0xE2>x', 1],
      ]),
    );
    expect([...tokenizer.tokenBytes(256)]).toEqual([0xe2]);
    expect([...tokenizer.tokenBytes(257)]).toEqual([0x0a]);
    expect([...tokenizer.tokenBytes(258)]).toEqual([...Buffer.from('<0xE2>x')]);
  });

  it('a normal token is the bytes its characters stand for', () => {
    const { tokens } = pairVocabulary('qwen35');
    for (const id of [0, 10, 32, 0x7f, 0xad, 0xff]) expect([...pairs.qwen35.tokenBytes(id)]).toEqual([id]);
    for (const id of [256, 300, 40_000, tokens.length - 1]) {
      expect([...pairs.qwen35.tokenBytes(id)]).toEqual([(id - 256) >> 8, (id - 256) & 255]);
    }
  });
});

describe('merges', () => {
  it('of lower rank come first, the leftmost of equal ones', () => {
    const tokenizer = load({ tokens: [...BYTE_CHARACTERS, 'ab', 'bc', 'aa'], merges: ['b c', 'a b', 'a a'] });
    expect(encodePlain(tokenizer, 'abc')).toEqual([97, 257]);
    expect(encodePlain(tokenizer, 'abab')).toEqual([256, 256]);
    expect(encodePlain(tokenizer, 'aaa')).toEqual([258, 97]);
  });

  it('that occur again keep their first rank', () => {
    const merges = ['a b', 'b c', 'a b'];
    expect(encodePlain(load({ tokens: [...BYTE_CHARACTERS, 'ab', 'bc'], merges }), 'abc')).toEqual([256, 99]);
  });

  it('do not reach across pieces', () => {
    const tokens = [...BYTE_CHARACTERS, '12', 'a1', 'Ġa', 'aĠ'];
    const merges = ['1 2', 'a 1', 'a Ġ', 'Ġ a'];
    expect(encodePlain(load({ tokens, merges }), 'a12 a')).toEqual([97, 49, 50, 258]);
  });

  it('every text of the vocabulary that merges make is one token', () => {
    let whole = 0;
    for (let id = 300; id < 8189; id += 7) {
      const text = Buffer.from(builtIn.tokenBytes(id)).toString();
      if (Buffer.from(text).equals(builtIn.tokenBytes(id)) && encodePlain(builtIn, text).length === 1)
        whole++;
    }
    // The rest are parts of characters, and texts that other merges get to first.
    expect(whole).toBeGreaterThan(1000);
  });
});

describe('a tokenizer that is not as it must be', () => {
  const bytes: VocabularySpec = { tokens: BYTE_CHARACTERS, merges: [] };

  it.each<[string, Record<string, MetadataValue | undefined>, string]>([
    ['llama', { 'tokenizer.ggml.model': string('llama') }, 'tokenizer "llama" is not supported'],
    [
      'pre llama-bpe',
      { 'tokenizer.ggml.pre': string('llama-bpe') },
      'pre-tokenizer "llama-bpe" is not supported',
    ],
    ['pre missing', { 'tokenizer.ggml.pre': undefined }, 'pre-tokenizer "(none)" is not supported'],
    ['pre constructor', { 'tokenizer.ggml.pre': string('constructor') }, 'pre-tokenizer "constructor"'],
    ['pre __proto__', { 'tokenizer.ggml.pre': string('__proto__') }, 'pre-tokenizer "__proto__"'],
    ['control characters', { 'tokenizer.ggml.pre': string('\u001b[2J') }, 'pre-tokenizer "\\u001b[2J"'],
  ])('%s is unsupported, by name', (_, changes, message) => {
    expect(() => load(bytes, changes)).toThrow(
      expect.objectContaining({ code: 'MODEL_UNSUPPORTED', message: expect.stringContaining(message) }),
    );
  });

  it.each<[string, Record<string, MetadataValue | undefined>, RegExp]>([
    ['no model', { 'tokenizer.ggml.model': undefined }, /"tokenizer.ggml.model" is missing/],
    ['no tokens', { 'tokenizer.ggml.tokens': undefined }, /"tokenizer.ggml.tokens" is missing/],
    ['empty tokens', { 'tokenizer.ggml.tokens': array('string', []) }, /"tokenizer.ggml.tokens"/],
    [
      'tokens that are numbers',
      { 'tokenizer.ggml.tokens': array('u32', [1]) },
      /"tokenizer.ggml.tokens" is an array of u32/,
    ],
    ['no merges', { 'tokenizer.ggml.merges': undefined }, /"tokenizer.ggml.merges" is missing/],
    [
      'a merge of one piece',
      { 'tokenizer.ggml.merges': array('string', ['ab']) },
      /merges\[0\]" is not two pieces/,
    ],
    ['a merge to no token', { 'tokenizer.ggml.merges': array('string', ['a b']) }, /merges\[0\]"/],
    [
      'too few types',
      { 'tokenizer.ggml.token_type': array('i32', [1]) },
      /token_type" has 1 entries for 256 tokens/,
    ],
    [
      'a type that is none',
      {
        'tokenizer.ggml.token_type': array(
          'i32',
          BYTE_CHARACTERS.map(() => 7),
        ),
      },
      /token_type\[0\]" is 7/,
    ],
    [
      'a byte without a token',
      { 'tokenizer.ggml.tokens': array('string', BYTE_CHARACTERS.slice(0, 255)) },
      /no token for the byte/,
    ],
    [
      'two tokens of one text',
      { 'tokenizer.ggml.tokens': array('string', [...BYTE_CHARACTERS, 'ab', 'ab']) },
      /tokens\[257\]" is the same text as token 256/,
    ],
    [
      'an end that is no token',
      { 'tokenizer.ggml.eos_token_id': u32(256) },
      /"tokenizer.ggml.eos_token_id" is 256/,
    ],
  ])('%s is invalid, by name', (_, changes, message) => {
    const opening = (): void => {
      const tokenizer = load(bytes, changes);
      // What only writing texts needs may be found out only then.
      tokenizer.encode('text', { parseSpecial: false });
    };
    expect(opening).toThrow(MoestreamError);
    expect(opening).toThrow(
      expect.objectContaining({ code: 'MODEL_INVALID', message: expect.stringMatching(message) }),
    );
  });

  it('texts that are names of object properties are texts', () => {
    const tokens = [...BYTE_CHARACTERS, '__proto__', 'constructor'];
    const tokenizer = load({ tokens, merges: [], types: [...BYTE_CHARACTERS.map(() => 1), 4, 3] });
    expect(tokenizer.encode('__proto__constructor', { parseSpecial: true })).toEqual([256, 257]);
    expect(tokenizer.specialId('toString')).toBeUndefined();
  });
});

describe('size', () => {
  /** As many tokens and merges as Qwen3.5 has: each joins two earlier tokens. */
  function largeVocabulary(size: number): VocabularySpec {
    let state = 1;
    const random = (below: number): number => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return (state >>> 8) % below;
    };
    const tokens = [...BYTE_CHARACTERS];
    const known = new Set(tokens);
    const merges: string[] = [];
    while (tokens.length < size - 33) {
      const left = tokens[random(tokens.length)]!;
      const right = tokens[random(Math.min(tokens.length, 3000))]!;
      if (left.length + right.length > 24 || known.has(left + right)) continue;
      known.add(left + right);
      tokens.push(left + right);
      merges.push(`${left} ${right}`);
    }
    const types = tokens.map(() => 1);
    while (tokens.length < size) {
      tokens.push(`<|special${tokens.length}|>`);
      types.push(3);
    }
    return { tokens, merges, types };
  }

  it('a vocabulary of 248,320', () => {
    const vocabulary = largeVocabulary(248_320);
    const path = files.write('large.gguf', buildGguf({ metadata: vocabularyMetadata(vocabulary) }).bytes);
    const began = performance.now();
    const { tokenizer } = openModelText(path);
    const millis = performance.now() - began;
    process.stderr.write(`a vocabulary of ${tokenizer.vocabularySize} loads in ${millis.toFixed(0)} ms\n`);
    const text = 'The quick brown fox, 12345 naïve 日本語 <|special248300|>';
    expect(bytesOf(tokenizer, tokenizer.encode(text, { parseSpecial: true })).toString()).toBe(text);
    expect(tokenizer.encode('<|special248300|>', { parseSpecial: true })).toEqual([248_300]);
  });

  const MEGABYTE = 1 << 20;
  it.each<[string, string]>([
    ['prose', 'The tar program stores files in an archive, and takes them out again: see "tar --help".\n'],
    ['one letter', 'a'],
    ['blanks', ' '],
    ['line ends', '\n'],
    ['blanks and line ends', '   \n\t'],
    ['punctuation', '!?'],
    ['digits', '7'],
    ['emoji', '😀'],
    ['combining marks', '\u0301'],
    ['special tokens', '<|im_end|>'],
    ['almost special tokens', '<|im_end|'],
    ['letters without a break', 'qzjxkvbpygfwmucldrhsnioate'],
  ])('a megabyte of %s', (name, unit) => {
    const text = unit.repeat(Math.ceil(MEGABYTE / unit.length));
    const began = performance.now();
    const ids = builtIn.encode(text, { parseSpecial: true });
    const seconds = (performance.now() - began) / 1000;
    if (name === 'prose')
      process.stderr.write(`prose: ${(ids.length / seconds / 1e6).toFixed(2)} million ids/s\n`);
    expect(bytesOf(builtIn, ids).equals(Buffer.from(text))).toBe(true);
  });
});
