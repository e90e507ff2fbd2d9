/** The numbers are right: against the transformers implementation and a float64 reference, through the whole pipeline. */
import { describe, expect, it } from 'vitest';
import type { Engine } from '../../dist/index.js';
import { generate, score, withEngine } from '../support/engine.js';
import {
  BUILT_IN_MODEL,
  fixture,
  missingShared,
  negativeLogLikelihood,
  readFloats,
  readJson,
  relativeRms,
  shared,
  tldrGolden,
} from '../support/golden.js';

const PRECISE = 1e-4;

describe('random models against a float64 reference', () => {
  const copied = ['nano-F32', 'nano-Q8_0', 'nano-Q4_0'];
  const larger = ['tiny-Q4_K_M', 'tiny-UD_Q3_K_XL'];
  for (const name of [...copied, ...larger]) {
    it(name, async (context) => {
      const here = copied.includes(name);
      const reason = here ? undefined : missingShared(`golden/models/${name}.gguf`);
      if (reason !== undefined) return context.skip(reason);
      const folder = here ? fixture(`golden/${name}`) : shared(`golden/${name}`);
      const model = here ? `${folder}/model.gguf` : shared(`golden/models/${name}.gguf`);
      const { ids } = readJson<{ ids: number[] }>(`${folder}/golden.json`);
      await withEngine({ model, contextLength: ids.length }, async (engine) => {
        const { logits } = await score(engine, ids);
        expect(relativeRms(logits, readFloats(`${folder}/ref.f32`))).toBeLessThan(PRECISE);
      });
    });
  }
});

describe('the trained model against the transformers implementation', () => {
  const golden = tldrGolden();
  const model = shared('model/tldr-Q8_0.gguf');
  const reason = missingShared('model/tldr-Q8_0.gguf');

  it('logits and selected experts of a chat', async (context) => {
    if (reason !== undefined) return context.skip(reason);
    await withEngine({ model }, async (engine) => {
      const { logits, experts } = await score(engine, golden.chat.ids);
      const expected = readFloats(shared(`model/golden/${golden.chat.logits_file}`));
      expect(relativeRms(logits, expected)).toBeLessThan(PRECISE);
      expect(byLayer(experts, golden.chat.ids.length, 0)).toEqual(golden.chat.experts);
    });
  });

  it('logits and selected experts at the end of 300 tokens of prose', async (context) => {
    if (reason !== undefined) return context.skip(reason);
    await withEngine({ model }, async (engine) => {
      const { ids, rows, vocab } = golden.prose;
      const { logits, experts } = await score(engine, ids);
      const expected = readFloats(shared(`model/golden/${golden.prose.logits_file}`));
      expect(relativeRms(logits.subarray(-rows * vocab), expected)).toBeLessThan(PRECISE);
      expect(byLayer(experts, ids.length, ids.length - rows)).toEqual(golden.prose.experts_last16);
    });
  });

  for (const text of ['val', 'wikitext2'] as const) {
    it(`per-token likelihood of 2048 tokens of ${text}`, async (context) => {
      if (reason !== undefined) return context.skip(reason);
      const { ids, nll } = golden[text];
      const largest = await withEngine({ model }, async (engine) => {
        let difference = 0;
        await engine.logits(ids.slice(0, -1), (row, position) => {
          const own = negativeLogLikelihood(row, ids[position + 1]!);
          difference = Math.max(difference, Math.abs(own - nll[position]!));
        });
        return difference;
      });
      expect(largest).toBeLessThan(1e-3);
    });
  }

  it('greedy continuations, token for token', async (context) => {
    if (reason !== undefined) return context.skip(reason);
    await withEngine({ model }, async (engine) => {
      for (const { prompt, output } of golden.greedy) {
        const { tokens } = await generate(
          engine,
          { ids: prompt },
          { temperature: 0, maxTokens: output.length },
        );
        // The end-of-turn token ends the answer and is not part of it.
        const end = output.findIndex((token) => engine.model.tokenizer.eogIds.has(token));
        expect(tokens).toEqual(end < 0 ? output : output.slice(0, end));
      }
    });
  });
});

/** What ggml itself shows on these models with activations of 8 bits: 0.026 to 0.048 relative RMS. */
const FAST_RMS = 0.06;

describe('fast precision', () => {
  it.each(['nano-F32', 'nano-Q8_0', 'nano-Q4_0'])(
    '%s stays within what 8-bit activations cost',
    async (name) => {
      const folder = fixture(`golden/${name}`);
      const { ids } = readJson<{ ids: number[] }>(`${folder}/golden.json`);
      await withEngine(
        { model: `${folder}/model.gguf`, contextLength: ids.length, precision: 'fast' },
        async (engine) => {
          const { logits } = await score(engine, ids);
          expect(relativeRms(logits, readFloats(`${folder}/ref.f32`))).toBeLessThan(FAST_RMS);
        },
      );
    },
  );

  it('keeps the perplexity within 1 %', async (context) => {
    const models: [path: string, expected: number][] = [[BUILT_IN_MODEL, 20.15]];
    const reason = missingShared('model/tldr-Q8_0.gguf');
    if (reason === undefined) models.push([shared('model/tldr-Q8_0.gguf'), 18.912]);
    for (const [model, expected] of models) {
      const found = await withEngine({ model, precision: 'fast' }, (engine) =>
        perplexity(engine, tldrGolden().val.ids),
      );
      expect(Math.abs(found / expected - 1)).toBeLessThan(0.01);
    }
    if (reason !== undefined) context.annotate(`tldr-Q8_0 left out: ${reason}`);
  });
});

describe('the built-in model', () => {
  it('has the perplexity of its card', async () => {
    const { ids } = tldrGolden().val;
    const found = await withEngine({ model: BUILT_IN_MODEL }, (engine) => perplexity(engine, ids));
    expect(Math.abs(found / 20.15 - 1)).toBeLessThan(1e-4);
  });

  it('answers', async () => {
    await withEngine({ model: BUILT_IN_MODEL }, async (engine) => {
      const { text } = await generate(engine, 'tar', { temperature: 0, maxTokens: 40 });
      expect(text).toMatch(/^# tar\n\nArchiving utility\./);
    });
  });
});

async function perplexity(engine: Engine, ids: readonly number[]): Promise<number> {
  let sum = 0;
  await engine.logits(ids.slice(0, -1), (row, position) => {
    sum += negativeLogLikelihood(row, ids[position + 1]!);
  });
  return Math.exp(sum / (ids.length - 1));
}

/** (positions, layers, top-k) -> [layer][position][k], from position `from` on. */
function byLayer(experts: Int32Array, positions: number, from: number): number[][][] {
  const layers = 8;
  const topK = 4;
  return Array.from({ length: layers }, (_, layer) =>
    Array.from({ length: positions - from }, (_, index) => {
      const at = ((from + index) * layers + layer) * topK;
      return Array.from(experts.subarray(at, at + topK));
    }),
  );
}
