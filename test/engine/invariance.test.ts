/**
 * Tuning never changes the output: the same bits for any readers, split, slab, I/O mode, chunk, threads, prediction; for a
 * GGUF, whose experts are three spans, and for an MLX checkpoint, whose experts are nine.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Engine, type OpenOptions, open } from '../../dist/index.js';
import { generate, score, withEngine } from '../support/engine.js';
import { BUILT_IN_MODEL, fixture, readJson, tldrGolden } from '../support/golden.js';

const PROMPT = 'How do I use git rebase?';
const SAMPLED = { seed: 7, temperature: 0.9, maxTokens: 50 };

const SUBJECTS = [
  {
    name: 'a GGUF',
    model: BUILT_IN_MODEL,
    ids: tldrGolden().prose.ids.slice(0, 90),
    spans: 3,
    slabs: [2_000_000, 4_000_000, 12_000_000],
  },
  {
    name: 'an MLX checkpoint',
    model: fixture('mlx/nano-4bit'),
    ids: readJson<{ ids: number[] }>(fixture('golden/nano-F32/golden.json')).ids.slice(0, 90),
    spans: 9,
    slabs: [400_000, 600_000, 800_000],
  },
] as const;

const bytesOf = (array: Float32Array | Int32Array): Uint8Array =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

describe.each(SUBJECTS)('$name', ({ model, ids, spans, slabs: [slab, larger, largest] }) => {
  /** The baseline: one reader, one thread, one token at a time. */
  let baseline: { logits: Float32Array; experts: Int32Array };
  let baselineText: { text: string; tokens: number[] };
  let smallestBytes: number;

  beforeAll(async () => {
    await withEngine({ model, readers: 1, threads: 1, chunk: 1, split: 1 }, async (engine) => {
      baseline = await score(engine, ids);
      baselineText = await generate(engine, PROMPT, SAMPLED);
      smallestBytes = engine.plan.smallestBytes;
    });
  });

  const expectSame = async (options: Omit<OpenOptions, 'model'>): Promise<void> => {
    await withEngine({ model, ...options }, async (engine) => {
      const { logits, experts } = await score(engine, ids);
      expect(Buffer.compare(bytesOf(logits), bytesOf(baseline.logits)), 'logits').toBe(0);
      expect(Buffer.compare(bytesOf(experts), bytesOf(baseline.experts)), 'experts').toBe(0);
      expect(await generate(engine, PROMPT, SAMPLED)).toMatchObject(baselineText);
    });
  };

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
        await expectSame({ ioEngine, io: 'buffered', window: 1, split: 1, readers: 9 });
        await expectSame({ ioEngine, window: spans === 3 ? 3 : 1, split: 5, readers: 16, queueDepth: 15 });
        await expectSame({ ioEngine, window: 0, queueDepth: 1, readers: 1 });
      },
    );

    it.each(['lru', 'lfru', 's3fifo'] as const)(
      'cache policy %s, with a slab of a tenth of the experts',
      async (cachePolicy) => {
        const options = { cachePolicy, chunk: 8 };
        const memory = (await smallestWith(options)) + slab;
        for (const predict of ['none', 'temporal'] as const)
          await expectSame({ ...options, memory, predict });
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
        withEngine({ model, precision: 'fast', ...options }, (engine) => score(engine, ids));
      const alone = await inFast({ chunk: 1, threads: 1 });
      for (const options of [
        { chunk: 64, threads: 3 },
        { chunk: 7, threads: 2, memory: smallestBytes + larger },
      ]) {
        const together = await inFast(options);
        expect(Buffer.compare(bytesOf(together.logits), bytesOf(alone.logits))).toBe(0);
      }
    });

    it('prediction', async () => {
      await expectSame({ predict: 'temporal' });
      await expectSame({ predict: 'temporal', memory: smallestBytes + largest, chunk: 4 });
    });
  });

  async function smallestWith(options: Omit<OpenOptions, 'model'>): Promise<number> {
    return withEngine({ model, ...options, memory: '4G' }, async (engine) => engine.plan.smallestBytes);
  }

  async function expectRefused(options: Omit<OpenOptions, 'model'>): Promise<void> {
    const memory = (await smallestWith(options)) - 1;
    await expect(open({ model, precision: 'exact', ...options, memory })).rejects.toMatchObject({
      code: 'PLAN_REFUSED',
    });
  }

  describe('one engine', () => {
    let engine: Engine;
    beforeAll(async () => {
      engine = await open({ model, readers: 4, precision: 'exact' });
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
});
