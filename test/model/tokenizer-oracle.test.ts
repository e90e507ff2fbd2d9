/** The same ids as another implementation: @huggingface/tokenizers, with the built-in model's vocabulary. */
import { Tokenizer as Oracle } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readGguf } from '../../dist/model/gguf.js';
import { Tokenizer } from '../../dist/model/tokenizer.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const QWEN35 = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

function oracle(): Oracle {
  const { metadata } = readGguf(BUILT_IN_MODEL);
  const tokens = metadata.plain('tokenizer.ggml.tokens') as string[];
  const json = {
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: QWEN35 }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
      ],
    },
    model: {
      type: 'BPE',
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: metadata.plain('tokenizer.ggml.merges'),
      ignore_merges: false,
    },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    added_tokens: [],
  };
  return new Oracle(json as never, {} as never);
}

describe('the tokenizer', () => {
  it('agrees with @huggingface/tokenizers on text of all kinds', () => {
    const own = new Tokenizer(readGguf(BUILT_IN_MODEL));
    const other = oracle();
    const words = fc.constantFrom(
      'tar',
      ' the',
      "it's",
      '\n\n',
      '  ',
      'naïve',
      '漢字',
      '🙂',
      '42',
      '{}();',
      '\t',
      'é',
    );
    const text = fc.array(fc.oneof(words, fc.string({ unit: 'grapheme-ascii', maxLength: 8 })), {
      maxLength: 20,
    });
    fc.assert(
      fc.property(text, (pieces) => {
        const joined = pieces.join('');
        expect(own.encode(joined, { parseSpecial: false })).toEqual([...other.encode(joined).ids]);
      }),
      { numRuns: 500 },
    );
  });
});
