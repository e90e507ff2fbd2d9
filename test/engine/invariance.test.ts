/** Tuning never changes the output: the same bits for any readers, split, slab, I/O mode, chunk, threads, prediction. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Engine, type OpenOptions, open } from '../../dist/index.js';
import { generate, score, withEngine } from '../support/engine.js';
import { BUILT_IN_MODEL, tldrGolden } from '../support/golden.js';

const ids = tldrGolden().prose.ids.slice(0, 90);

/** The baseline: one reader, one thread, one token at a time. */
let baseline: { logits: Float32Array; experts: Int32Array };
let baselineText: { text: string; tokens: number[] };
let smallestBytes: number;

const PROMPT = 'How do I use git rebase?';
const SAMPLED = { seed: 7, temperature: 0.9, maxTokens: 50 };

beforeAll(async () => {
  await withEngine({ model: BUILT_IN_MODEL, readers: 1, threads: 1, chunk: 1, split: 1 }, async (engine) => {
    baseline = await score(engine, ids);
    baselineText = await generate(engine, PROMPT, SAMPLED);
    smallestBytes = engine.plan.smallestBytes;
  });
});

async function expectSame(options: Omit<OpenOptions, 'model'>): Promise<void> {
  await withEngine({ model: BUILT_IN_MODEL, ...options }, async (engine) => {
    const { logits, experts } = await score(engine, ids);
    expect(Buffer.compare(bytesOf(logits), bytesOf(baseline.logits)), 'logits').toBe(0);
    expect(Buffer.compare(bytesOf(experts), bytesOf(baseline.experts)), 'experts').toBe(0);
    expect(await generate(engine, PROMPT, SAMPLED)).toMatchObject(baselineText);
  });
}

const bytesOf = (array: Float32Array | Int32Array): Uint8Array =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

describe('the same bits whatever', () => {
  it.each([1, 3, 16])('%i readers', (readers) => expectSame({ readers }));
  it.each([1, 4, 8, 16])('split %i', (split) => expectSame({ split }));
  it.each(['direct', 'buffered'] as const)('%s I/O', (io) => expectSame({ io }));
  it.each([1, 2, 7, 64, 90, 256])('chunks of %i', (chunk) => expectSame({ chunk }));
  it.each([1, 2, 3])('%i threads', (threads) => expectSame({ threads }));

  it.each(['threads', 'uring'] as const)(
    'read engine %s, in every mode, window and depth',
    async (ioEngine) => {
      await expectSame({ ioEngine, io: 'direct', window: 0 });
      await expectSame({ ioEngine, io: 'buffered', window: 1, split: 1 });
      await expectSame({ ioEngine, window: 3, split: 5, readers: 16, queueDepth: 15 });
      await expectSame({ ioEngine, window: 0, queueDepth: 1, readers: 1 });
    },
  );

  it.each(['lru', 'lfru', 's3fifo'] as const)(
    'cache policy %s, with a slab of a tenth of the experts',
    async (cachePolicy) => {
      const options = { cachePolicy, chunk: 8 };
      const memory = (await smallestWith(options)) + 2_000_000;
      for (const predict of ['none', 'temporal'] as const) await expectSame({ ...options, memory, predict });
    },
  );

  it('the smallest slab that works, in chunks whose experts do not fit it', async () => {
    for (const chunk of [1, 64]) {
      // The smallest budget depends on the chunk, whose scratch memory counts.
      const options = { memory: smallestBytes, chunk };
      await expectRefused(options);
      await expectSame({ ...options, memory: await smallestWith(options) });
    }
  });

  it('fast precision too: chunks and threads', async () => {
    const inFast = (options: Omit<OpenOptions, 'model'>) =>
      withEngine({ model: BUILT_IN_MODEL, precision: 'fast', ...options }, (engine) => score(engine, ids));
    const alone = await inFast({ chunk: 1, threads: 1 });
    for (const options of [
      { chunk: 64, threads: 3 },
      { chunk: 7, threads: 2, memory: smallestBytes + 4_000_000 },
    ]) {
      const together = await inFast(options);
      expect(Buffer.compare(bytesOf(together.logits), bytesOf(alone.logits))).toBe(0);
    }
  });

  it('prediction', async () => {
    await expectSame({ predict: 'temporal' });
    await expectSame({ predict: 'temporal', memory: smallestBytes + 12_000_000, chunk: 4 });
  });
});

async function smallestWith(options: Omit<OpenOptions, 'model'>): Promise<number> {
  return withEngine(
    { model: BUILT_IN_MODEL, ...options, memory: '4G' },
    async (engine) => engine.plan.smallestBytes,
  );
}

async function expectRefused(options: Omit<OpenOptions, 'model'>): Promise<void> {
  const memory = (await smallestWith(options)) - 1;
  await expect(open({ model: BUILT_IN_MODEL, precision: 'exact', ...options, memory })).rejects.toMatchObject(
    {
      code: 'PLAN_REFUSED',
    },
  );
}

describe('one engine', () => {
  let engine: Engine;
  beforeAll(async () => {
    engine = await open({ model: BUILT_IN_MODEL, readers: 4, precision: 'exact' });
  });
  afterAll(() => engine.close());

  it('gives the same answer again, after other work and after an interrupted one', async () => {
    const first = await generate(engine, PROMPT, SAMPLED);
    expect(first).toMatchObject(baselineText);
    for await (const piece of engine.generate('something else', { maxTokens: 20 })) if (piece.token) break;
    expect(await generate(engine, PROMPT, SAMPLED)).toEqual(first);
  });

  it('runs one generation at a time', async () => {
    const generation = engine.generate(PROMPT, SAMPLED)[Symbol.asyncIterator]();
    await generation.next();
    await expect(generate(engine, PROMPT, SAMPLED)).rejects.toMatchObject({ code: 'ENGINE_STATE' });
    await generation.return();
    expect(await generate(engine, PROMPT, SAMPLED)).toMatchObject(baselineText);
  });
});
