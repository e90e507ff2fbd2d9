/** Prediction changes what is read when, never what is computed; and nothing depends on the predictor being alive. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import type { Forecaster } from '../../dist/engine/forecaster.js';
import { type Engine, type GenerationStats, type OpenOptions, open } from '../../dist/index.js';
import { ROUTE_LAYER } from '../../dist/pipeline/messages.js';
import { generate, score, withEngine } from '../support/engine.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

/** A quarter of the experts. */
const OPTIONS: OpenOptions = { model: BUILT_IN_MODEL, memory: '22M', contextLength: 512, chunk: 16 };
const PROMPT = { raw: 'tar\n\n> Archiving utility.\n\n- Create an archive from files:\n' };
const ANSWER = { temperature: 0, maxTokens: 40 };

async function outputs(options: OpenOptions): Promise<unknown> {
  return withEngine(options, async (engine) => {
    const ids = engine.promptIds(PROMPT);
    const { logits, experts } = await score(engine, ids);
    const { tokens } = await generate(engine, PROMPT, ANSWER);
    return { logits: Buffer.from(logits.buffer).toString('base64'), experts, tokens };
  });
}

describe('output', () => {
  const plain = outputs(OPTIONS);

  it.each([
    'none',
    'temporal',
    'union,frequency',
    'frequency',
    'markov',
    'lookahead',
    'auto',
    'temporal,frequency,markov,lookahead',
    'auto,markov,lookahead',
  ])('is the same bits with %s', async (predict) => {
    expect(await outputs({ ...OPTIONS, predict, lookahead: 2 })).toEqual(await plain);
  });
});

describe('a prediction', () => {
  it('reads ahead, and says what became of it', async () => {
    await withEngine({ ...OPTIONS, predict: 'lookahead' }, async (engine) => {
      const generation = engine.generate(PROMPT, ANSWER);
      for await (const _ of generation);
      const { experts, controller, predictions } = generation.result.stats;
      expect(predictions.routes).toBeGreaterThan(0);
      expect(predictions.streamsUsed).toBeGreaterThan(0);
      expect(experts.prefetches).toBeGreaterThan(0);
      expect(experts.hints).toBeLessThanOrEqual(predictions.hintsGiven);
      expect(experts.hits + experts.lateHits + experts.misses).toBe(experts.lookups);
      expect(controller).toMatchObject({ mode: 'fixed', limit: 4 });
    });
  });

  it('is asked for row by row in an answer', async () => {
    await withEngine({ ...OPTIONS, predict: 'lookahead' }, async (engine) => {
      const generation = engine.generate({ ids: [5] }, ANSWER);
      for await (const _ of generation);
      const { experts, predictions } = generation.result.stats;
      expect(predictions.streamsUsed).toBeGreaterThan(0);
      expect(experts.usefulPrefetchBytes).toBeGreaterThan(0);
    });
  });

  it.each(['none', 'union'])('costs no thread and no hint where nobody predicts: %s', async (predict) => {
    await withEngine({ ...OPTIONS, predict }, async (engine) => {
      expect(predictorOf(engine)).toBeUndefined();
      const generation = engine.generate(PROMPT, ANSWER);
      for await (const _ of generation);
      expect(generation.result.stats.predictions.routes).toBe(0);
    });
  });

  it.each([
    ['nobody', /no such predictor/],
    ['none,auto', /none goes with nothing else/],
    ['union,none', /none goes with nothing else/],
    ['markov,markov', /a name stands twice/],
    ['', /no such predictor/],
  ])('of "%s" is refused', async (predict, why) => {
    await expect(open({ ...OPTIONS, predict })).rejects.toMatchObject({ code: 'USAGE', message: why });
  });
});

describe('the next layer of a chunk', () => {
  const countsOf = (options: Partial<OpenOptions>): Promise<GenerationStats['experts']> =>
    withEngine({ ...OPTIONS, ...options }, async (engine) => {
      const generation = engine.generate(PROMPT, { temperature: 0, maxTokens: 1 });
      for await (const _ of generation);
      return generation.result.stats.experts;
    });

  it('is read ahead unless nothing is to be read that no router asked for', async () => {
    const none = await countsOf({ predict: 'none' });
    const union = await countsOf({ predict: 'union' });
    expect(none).toMatchObject({ prefetches: 0, usefulPrefetchBytes: 0 });
    expect(union.prefetches).toBeGreaterThan(20);
    expect(union.hits + union.lateHits).toBeGreaterThan(none.hits);
    expect(union.demandBytesRead).toBeLessThan(none.demandBytesRead);
    const judged = union.usefulPrefetchBytes + union.latePrefetchBytes + union.wastedPrefetchBytes;
    // What was taken back before it reached the disk is in no count.
    expect(judged).toBeLessThanOrEqual(union.bytesRead - union.demandBytesRead + union.latePrefetchBytes);
  });

  it('is not read ahead where every row is computed alone', async () => {
    expect(await countsOf({ predict: 'union', chunk: 1 })).toMatchObject({ prefetches: 0 });
  });
});

/** The predictor's thread, from inside the engine: a test may end it, a user cannot. */
function predictorOf(engine: Engine): Worker | undefined {
  const inside = engine as unknown as { pipeline: { forecaster: { stage?: { worker: Worker } } } };
  return inside.pipeline.forecaster.stage?.worker;
}

describe('a predictor that dies', () => {
  it.each(['before a generation', 'during one'])(
    '%s is reported once, and the text is the same',
    async (when) => {
      const notices: string[] = [];
      const expected = await withEngine(OPTIONS, (engine) => generate(engine, PROMPT, ANSWER));
      await withEngine(
        { ...OPTIONS, predict: 'lookahead', onNotice: (text) => notices.push(text) },
        async (engine) => {
          if (when === 'before a generation') await predictorOf(engine)!.terminate();
          const tokens: number[] = [];
          const generation = engine.generate(PROMPT, ANSWER);
          for await (const { token } of generation) {
            if (token !== undefined) tokens.push(token);
            if (tokens.length === 3) await predictorOf(engine)!.terminate();
          }
          expect(tokens).toEqual(expected.tokens);
          const again = await generate(engine, PROMPT, ANSWER);
          expect(again.tokens).toEqual(expected.tokens);
        },
      );
      const told = notices.filter((text) => text.startsWith('going on without prediction'));
      expect(told).toEqual([expect.stringMatching(/the predict thread ended/)]);
    },
  );

  it('by an error of its own is reported with the error', async () => {
    const notices: string[] = [];
    const expected = await withEngine(OPTIONS, (engine) => generate(engine, PROMPT, ANSWER));
    await withEngine(
      { ...OPTIONS, predict: 'markov', onNotice: (text) => notices.push(text) },
      async (engine) => {
        const { forecaster } = (engine as unknown as { pipeline: { forecaster: Forecaster } }).pipeline;
        const { routes } = forecaster.rings!;
        const slot = routes.tryReserve();
        routes.words[slot + ROUTE_LAYER] = 1_000_000;
        routes.commit();
        await forecaster.run();
        expect(notices.join()).toMatch(
          /going on without prediction: broken invariant: a route of layer 1000000/,
        );
        expect((await generate(engine, PROMPT, ANSWER)).tokens).toEqual(expected.tokens);
      },
    );
  });
});

describe('what markov learned', () => {
  const path = join(temporaryFolder(), 'learned.markov');
  const learning: OpenOptions = { ...OPTIONS, predict: 'markov', predictState: path };

  it('is kept, read again, and refused when it is damaged or of another model', async () => {
    await withEngine(learning, (engine) => generate(engine, PROMPT, ANSWER));
    const first = readFileSync(path);
    await withEngine(learning, (engine) => generate(engine, PROMPT, ANSWER));
    const second = readFileSync(path);
    expect(second.length).toBe(first.length);
    const learned = (bytes: Buffer): number => bytes.subarray(64).reduce((sum, byte) => sum + byte, 0);
    expect(learned(second)).toBeGreaterThan(1.5 * learned(first));
    const damaged = (at: number): Buffer => {
      const bytes = Buffer.from(second);
      bytes[at] = bytes[at]! ^ 1;
      return bytes;
    };
    const cases: [Buffer, RegExp][] = [
      [damaged(0), /begins with other bytes/],
      [damaged(8), /of version 0/],
      [damaged(12), /layers, experts and experts per token/],
      [damaged(40), /of another model/],
      [damaged(1000), /checksum/],
      [second.subarray(0, 1000), /has 1000 bytes instead of/],
      [second.subarray(0, 10), /it has 10 bytes/],
    ];
    for (const [bytes, why] of cases) {
      writeFileSync(path, bytes);
      await expect(open(learning)).rejects.toMatchObject({ code: 'STATE_REFUSED', message: why });
      expect(readFileSync(path).equals(bytes)).toBe(true);
    }
  });

  it('that cannot be kept is a notice, not an error', async () => {
    const notices: string[] = [];
    const folder = join(temporaryFolder(), 'folder');
    const predictState = join(folder, 'gone', 'learned.markov');
    mkdirSync(folder);
    await withEngine({ ...learning, predictState, onNotice: (text) => notices.push(text) }, (engine) =>
      generate(engine, PROMPT, ANSWER),
    );
    expect(notices).toContainEqual(expect.stringMatching(/what the predictor learned is not kept.*ENOENT/));
  });

  it('needs the predictor markov', async () => {
    await expect(open({ ...OPTIONS, predict: 'temporal', predictState: path })).rejects.toMatchObject({
      code: 'USAGE',
    });
  });
});
