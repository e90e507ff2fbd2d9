import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import { readGguf } from '../../dist/model/gguf.js';
import { SpecialTexts } from '../../dist/model/special-texts.js';
import { Tokenizer } from '../../dist/model/tokenizer.js';
import {
  BYTE_CHARACTERS,
  buildGguf,
  temporaryFiles,
  type VocabularySpec,
  vocabularyMetadata,
} from '../support/gguf-builder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const files = temporaryFiles();
const builtIn = new Tokenizer(readGguf(BUILT_IN_MODEL));

function load(spec: VocabularySpec): Tokenizer {
  return new Tokenizer(
    readGguf(files.write('vocabulary.gguf', buildGguf({ metadata: vocabularyMetadata(spec) }).bytes)),
  );
}

function refusal(spec: VocabularySpec): MoestreamError {
  try {
    load(spec);
  } catch (error) {
    if (error instanceof MoestreamError) return error;
    throw error;
  }
  throw new Error('the vocabulary loads');
}

function bytesOf(tokenizer: Tokenizer, ids: readonly number[]): Buffer {
  return Buffer.concat(ids.map((id) => tokenizer.tokenBytes(id)));
}

/** The rule of byte-pair encoding as it is told, one pass over everything for each merge. */
function slowly(merges: readonly (readonly [string, string])[], text: string): string[] {
  let pieces = [...text];
  for (;;) {
    let best = merges.length;
    let where = -1;
    for (let at = 0; at + 1 < pieces.length; at++) {
      const rank = merges.findIndex(([left, right]) => left === pieces[at] && right === pieces[at + 1]);
      if (rank >= 0 && rank < best) [best, where] = [rank, at];
    }
    if (where < 0) return pieces;
    pieces = [...pieces.slice(0, where), pieces[where]! + pieces[where + 1]!, ...pieces.slice(where + 2)];
  }
}

/** Merges of a few letters, each of two pieces that there already are. */
const merges = fc.array(fc.tuple(fc.nat(), fc.nat()), { maxLength: 12 }).map((choices) => {
  const pieces = ['a', 'b', 'c'];
  const made: [string, string][] = [];
  for (const [first, second] of choices) {
    const pair: [string, string] = [pieces[first % pieces.length]!, pieces[second % pieces.length]!];
    if (pieces.includes(pair.join('')) || pair.join('').length > 8) continue;
    pieces.push(pair.join(''));
    made.push(pair);
  }
  return made;
});

describe('byte-pair encoding', () => {
  it('does what the rule says, however short or long the piece', () => {
    const text = fc
      .array(fc.constantFrom('a', 'b', 'c'), { maxLength: 60 })
      .map((letters) => letters.join(''));
    fc.assert(
      fc.property(merges, text, (pairs, letters) => {
        const tokens = [...BYTE_CHARACTERS, ...pairs.map((pair) => pair.join(''))];
        const tokenizer = load({ tokens, merges: pairs.map((pair) => pair.join(' ')) });
        const ids = tokenizer.encode(letters, { parseSpecial: false });
        expect(ids.map((id) => tokens[id])).toEqual(slowly(pairs, letters));
      }),
      { numRuns: 200 },
    );
  });

  it('keeps every byte of any text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 300 }), fc.boolean(), (text, parseSpecial) => {
        expect(bytesOf(builtIn, builtIn.encode(text, { parseSpecial }))).toEqual(Buffer.from(text));
      }),
      { numRuns: 500 },
    );
  });

  it('gives the same ids the first time and when it remembers', () => {
    const fresh = new Tokenizer(readGguf(BUILT_IN_MODEL));
    const texts = Array.from({ length: 20_000 }, (_, index) => `word${index} the`);
    const first = texts.map((text) => fresh.encode(text, { parseSpecial: false }).join());
    expect(texts.map((text) => fresh.encode(text, { parseSpecial: false }).join())).toEqual(first);
  });

  // A quadratic step makes a megabyte take minutes; what it takes is a tenth to half a second.
  it.each([' ', 'a', '\n', '!', '漢', '<|im_start|'])('a megabyte of %j is no work', (unit) => {
    const text = unit.repeat(Math.floor(2 ** 20 / Buffer.byteLength(unit)));
    const start = performance.now();
    const ids = builtIn.encode(text, { parseSpecial: true });
    expect(performance.now() - start).toBeLessThan(10_000);
    expect(bytesOf(builtIn, ids).equals(Buffer.from(text))).toBe(true);
  });

  it('a run too long for the engine of regular expressions is refused by type', () => {
    expect(() => builtIn.encode('漢'.repeat(2 ** 23), { parseSpecial: false })).toThrowError(
      expect.objectContaining({ code: 'USAGE' }),
    );
  });
});

describe('a vocabulary that would lose text', () => {
  const tokens = [...BYTE_CHARACTERS, 'ab'];

  it('loads when it is whole', () => {
    expect(load({ tokens, merges: ['a b'] }).encode('xab', { parseSpecial: false })).toEqual([120, 256]);
  });

  it.each<[string, VocabularySpec, RegExp]>([
    [
      'lacks a byte',
      { tokens: tokens.filter((text) => text !== 'q'), merges: [] },
      /no token for the byte 113/,
    ],
    ['lacks what a merge makes', { tokens, merges: ['a b', 'ab c'] }, /merges\[1\].*not among/],
    ['lacks what a merge joins', { tokens: [...tokens, 'xyz'], merges: ['xy z'] }, /merges\[0\].*not among/],
    ['has a merge of one piece', { tokens, merges: ['ab'] }, /merges\[0\].*two pieces/],
    ['has a text twice', { tokens: [...tokens, 'ab'], merges: [] }, /tokens\[257\].*token 256/],
  ])('%s', (_, spec, message) => {
    const error = refusal(spec);
    expect([error.code, error.message]).toEqual(['MODEL_INVALID', expect.stringMatching(message)]);
  });

  it('of two merges of the same pieces the first counts', () => {
    const doubled = load({ tokens: [...tokens, 'bc'], merges: ['a b', 'b c', 'a b'] });
    expect(doubled.encode('abc', { parseSpecial: false })).toEqual([256, 99]);
  });
});

describe('texts of special tokens', () => {
  it('the leftmost is found, and of several there the longest', () => {
    const texts = new SpecialTexts();
    texts.add('<a>', 1);
    texts.add('<a>b', 2);
    texts.add('b', 3);
    expect(texts.find('x<a>bb', 0)).toEqual({ id: 2, start: 1, end: 5 });
    expect(texts.find('x<a>bb', 2)).toEqual({ id: 3, start: 4, end: 5 });
    expect(texts.find('x<a>', 0)).toEqual({ id: 1, start: 1, end: 4 });
    expect(texts.find('x<a', 0)).toBeUndefined();
  });

  it('there may be more of them than a regular expression holds', () => {
    const specials = Array.from({ length: 50_000 }, (_, index) => `<|${index}|>`);
    const types = [...BYTE_CHARACTERS.map(() => 1), ...specials.map(() => 3)];
    const tokenizer = load({ tokens: [...BYTE_CHARACTERS, ...specials], types, merges: [] });
    expect(tokenizer.encode('a<|49999|>b', { parseSpecial: true })).toEqual([97, 256 + 49_999, 98]);
    expect(tokenizer.encode('<|7|>', { parseSpecial: false })).toHaveLength(5);
  });

  it('none may be so long that looking for it takes for ever', () => {
    const tokens = [...BYTE_CHARACTERS, '<'.repeat(257)];
    const error = refusal({ tokens, types: tokens.map((_, id) => (id < 256 ? 1 : 3)), merges: [] });
    expect([error.code, error.message]).toEqual(['MODEL_INVALID', expect.stringContaining('256 characters')]);
  });
});
