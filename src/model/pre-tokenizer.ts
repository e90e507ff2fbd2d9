/**
 * Cuts text into the pieces that byte-pair encoding never joins: words, single digits, punctuation, blanks.
 *
 * The patterns are the tokenizers' own, written for JavaScript with two differences that matter: `\s` is spelled out
 * (JavaScript's has U+FEFF and lacks U+0085), and contractions name both cases (the `i` flag would take U+017F for an
 * s). With that, every code point of planes 0 and 1 is cut as llama.cpp v0.5.0 cuts it, but for some 3,700 of Unicode 16
 * and later: its tables do not know them as letters, those of JavaScript do. Invariant: the pieces together are the text.
 */
import { invariant, MoestreamError } from '../errors.ts';

/** White_Space of Unicode, as llama.cpp and the original Rust tokenizers have it. */
const BLANK = '\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000';
const CONTRACTION = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])";
const BLANKS = `[${BLANK}]*[\\r\\n]+|[${BLANK}]+(?![^${BLANK}])|[${BLANK}]+`;

function pattern(word: string): string {
  return `${CONTRACTION}|[^\\r\\n\\p{L}\\p{N}]?[${word}]+|\\p{N}| ?[^${BLANK}${word}\\p{N}]+[\\r\\n]*|${BLANKS}`;
}

/** By `tokenizer.ggml.pre`. qwen35 takes combining marks for parts of words, qwen2 takes them for punctuation. */
const PATTERNS: ReadonlyMap<string, string> = new Map([
  ['qwen35', pattern('\\p{L}\\p{M}')],
  ['qwen2', pattern('\\p{L}')],
]);

export const PRE_TOKENIZERS: readonly string[] = [...PATTERNS.keys()];

/** The same patterns as a tokenizer.json writes them, and their names. */
export const HF_PATTERNS: ReadonlyMap<string, string> = new Map(
  (
    [
      ['qwen35', '\\p{L}\\p{M}', '[\\p{L}\\p{M}]+'],
      ['qwen2', '\\p{L}', '\\p{L}+'],
    ] as const
  ).map(([name, letters, word]) => [
    `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?${word}|\\p{N}| ?[^\\s${letters}\\p{N}]+[\\r\\n]*` +
      '|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
    name,
  ]),
);

export class PreTokenizer {
  readonly #pattern: RegExp;

  /** `name` is one of PRE_TOKENIZERS. */
  constructor(name: string) {
    const source = PATTERNS.get(name);
    invariant(source !== undefined, `there is a pre-tokenizer ${name}`);
    this.#pattern = new RegExp(source, 'uy');
  }

  /** Calls `take` with every piece of `text`, in order. */
  cut(text: string, take: (piece: string) => void): void {
    let from = 0;
    while (from < text.length) {
      this.#pattern.lastIndex = from;
      const piece = this.#match(text);
      invariant(piece !== undefined && piece.length > 0, 'a pre-tokenizer cuts all text');
      take(piece);
      from += piece.length;
    }
  }

  /** V8 remembers every step of a run in 64 MB: a run of some four million letters without a break is too much. */
  #match(text: string): string | undefined {
    try {
      return this.#pattern.exec(text)?.[0];
    } catch (cause) {
      const at = this.#pattern.lastIndex;
      throw new MoestreamError(
        'USAGE',
        `the text from character ${at} on has no break for millions of characters`,
        {
          hint: 'Cut the text: no vocabulary has a word that long.',
          cause,
        },
      );
    }
  }
}
