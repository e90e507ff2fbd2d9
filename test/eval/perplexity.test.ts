/** Perplexity is right, is the same bits whatever the tuning, and sees a cache that is broken. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { measurePerplexity, type PerplexityRequest } from '#dist/eval/perplexity.js';
import { windowsOf } from '#dist/eval/windows.js';
import { type Engine, open } from '#dist/index.js';
import { readGguf } from '#dist/model/gguf.js';
import { faultyReadsEnv, runCli } from '../support/cli.js';
import { withEngine } from '../support/engine.js';
import { temporaryFolder } from '../support/folder.js';
import {
  BUILT_IN_MODEL,
  missingShared,
  negativeLogLikelihood,
  shared,
  tldrGolden,
} from '../support/golden.js';
import { requantized } from '../support/requantized.js';

const { val, wikitext2 } = tldrGolden();
const exact = (model: string) => ({ model, precision: 'exact' as const, readers: 4 });

/** From the card of the model: 2,048 scored tokens in one continuous context. */
const CARD: readonly (readonly [name: string, docs: number, wiki: number])[] = [
  ['UD_Q3_K_XL', 20.15, 32.06],
  ['Q8_0', 18.912, 31.312],
  ['Q4_K', 19.141, 31.527],
  ['Q2_K', 21.374, 35.703],
];
const TOLERANCE = 0.002;

function fileOf(name: string): { readonly path: string } | { readonly reason: string } {
  if (name === 'UD_Q3_K_XL') return { path: BUILT_IN_MODEL };
  if (name !== 'Q8_0') return requantized(name);
  const reason = missingShared('model/tldr-Q8_0.gguf');
  return reason === undefined ? { path: shared('model/tldr-Q8_0.gguf') } : { reason };
}

/** A minute more. */
const LONG = process.env.MOESTREAM_TEST_LONG === '1';

describe('against the model card, within 0.2 %', () => {
  for (const [name, docs, wiki] of CARD) {
    const expectPerplexity = async (
      ids: readonly number[],
      expected: number,
      skip: (reason: string) => void,
    ) => {
      const file = fileOf(name);
      if ('reason' in file) return skip(file.reason);
      const found = await measurePerplexity({
        options: exact(file.path),
        source: { ids },
        method: { tokens: ids.length },
      });
      expect(found.scoredTokens).toBe(2048);
      expect(Math.abs(found.perplexity / expected - 1)).toBeLessThan(TOLERANCE);
    };
    it(`${name}, documentation`, (context) => expectPerplexity(val.ids, docs, context.skip));
    it(`${name}, WikiText-2`, (context) => {
      if (!LONG) return context.skip('takes half a minute: npm run test:long');
      return expectPerplexity(wikitext2.ids, wiki, context.skip);
    });
  }
});

describe('conventions', () => {
  it('chunks: the second half of each, from nothing', async () => {
    const ids = wikitext2.ids.slice(0, 100);
    const found = await measurePerplexity({
      options: exact(BUILT_IN_MODEL),
      source: { ids },
      method: { context: 32 },
    });
    const nll: number[] = [];
    await withEngine({ model: BUILT_IN_MODEL }, async (engine) => {
      for (const start of [0, 32, 64]) {
        const chunk = ids.slice(start, start + 32);
        await engine.logits(chunk, (row, position) => {
          const next = chunk[position + 1];
          if (position >= 16 && next !== undefined) nll.push(negativeLogLikelihood(row, next));
        });
      }
    });
    const mean = nll.reduce((sum, each) => sum + each) / nll.length;
    const variance = nll.reduce((sum, each) => sum + (each - mean) ** 2, 0) / (nll.length - 1);
    expect(found.scoredTokens).toBe(45);
    expect(nll.length).toBe(45);
    expect(found.perplexity).toBeCloseTo(Math.exp(mean), 9);
    expect(found.error).toBeCloseTo(Math.exp(mean) * Math.sqrt(variance / 45), 9);
    expect(found.method).toMatch(/3 chunks of 32 tokens.*llama\.cpp/);
  });

  it('a text that is too short is refused, a long one cut', () => {
    const ids = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    expect(() => windowsOf(ids, { context: 10 }, undefined)).toThrow(/has 9 tokens/);
    expect(windowsOf(ids, { context: 4 }, undefined)).toEqual({
      ids: [1, 2, 3, 4, 5, 6, 7, 8],
      windowTokens: 4,
      windows: 2,
      from: 2,
    });
    expect(windowsOf(ids, { context: 4, chunks: 1 }, 99).ids).toEqual([99, 2, 3, 4]);
    expect(windowsOf(ids, { tokens: 100 }, 99)).toEqual({ ids, windowTokens: 9, windows: 1, from: 0 });
    for (const method of [{ tokens: 1 }, { context: 3 }, { context: 4, chunks: 0 }, { tokens: 2.5 }]) {
      expect(() => windowsOf(ids, method, undefined)).toThrow(expect.objectContaining({ code: 'USAGE' }));
    }
  });
});

describe('the same bits whatever the tuning', () => {
  const request: PerplexityRequest = {
    options: exact(BUILT_IN_MODEL),
    source: { ids: val.ids },
    method: { tokens: 300 },
  };
  let digest: string;
  let smallest: number;
  let engine: Engine;

  beforeAll(async () => {
    ({ digest } = await measurePerplexity(request));
    engine = await open({ ...request.options, contextLength: 300, chunk: 16 });
    smallest = engine.plan.smallestBytes;
  });
  afterAll(() => engine.close());

  it.each([
    { predict: 'temporal' },
    { predict: 'temporal', memory: 'small' },
    { predict: 'lookahead', memory: 'small' },
    { predict: 'auto,markov,frequency', memory: 'small' },
    { memory: 'small' },
    { memory: 'small', cachePolicy: 's3fifo' },
    { readers: 1 },
    { readers: 16, split: 8 },
    { threads: 1, chunk: 7 },
    { io: 'buffered', ioEngine: 'threads' },
  ] as const)('%o', async (changed) => {
    const small = 'memory' in changed ? { memory: smallest + 1_000_000, chunk: 16 } : {};
    for (const decode of [false, true]) {
      const options = { ...request.options, ...changed, ...small } as PerplexityRequest['options'];
      const found = await measurePerplexity({ ...request, options, decode });
      expect(found.digest).toBe(digest);
    }
  });

  it('and others when something is lost', async () => {
    const options = { ...request.options, expertsPerToken: 3 };
    expect((await measurePerplexity({ ...request, options })).digest).not.toBe(digest);
  });
});

describe.skipIf(process.platform !== 'linux')('a cache that serves what nobody has read', () => {
  const ids = join(temporaryFolder(), 'val.ids');
  writeFileSync(ids, val.ids.slice(0, 300).join(' '));
  const score = [
    'perplexity',
    BUILT_IN_MODEL,
    '--ids',
    ids,
    '--tokens',
    '300',
    '--precision',
    'exact',
    '--json',
    '-q',
  ];
  const threads = ['--io-engine', 'threads', '--readers', '4'];

  /** Every read of one layer's up matrices says that it has come, and has not. */
  function stale(): Record<string, string> {
    const { offsetBytes, byteLength } = readGguf(BUILT_IN_MODEL).tensors.get('blk.5.ffn_up_exps.weight')!;
    return faultyReadsEnv('stale', offsetBytes + 8192, offsetBytes + byteLength - 8192);
  }

  it.each([
    ['in chunks', []],
    ['token by token', ['--decode']],
    ['with prediction', ['--decode', '--predict', 'temporal']],
  ])('shows in the perplexity: %s', async (_, flags) => {
    const [whole, broken] = await Promise.all([
      runCli([...score, ...threads, ...flags]),
      runCli([...score, ...threads, ...flags], { env: stale() }),
    ]);
    expect([whole.code, broken.code]).toEqual([0, 0]);
    const [right, wrong] = [whole, broken].map(
      (run) => JSON.parse(run.stdout) as { perplexity: number; digest: string },
    );
    expect(wrong!.perplexity / right!.perplexity - 1).toBeGreaterThan(5 * TOLERANCE);
    expect(wrong!.digest).not.toBe(right!.digest);
  });
});
