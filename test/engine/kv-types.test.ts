/** The types of keys and values through the whole pipeline: numbers, memory plan, defaults and refusals. */
import { describe, expect, it } from 'vitest';
import { backendConfig } from '../../dist/engine/backend-config.js';
import { settingsOf } from '../../dist/engine/options.js';
import { openModel } from '../../dist/model/model.js';
import { score, withEngine } from '../support/engine.js';
import {
  BUILT_IN_MODEL,
  fixture,
  negativeLogLikelihood,
  readFloats,
  readJson,
  relativeRms,
  tldrGolden,
} from '../support/golden.js';

const TYPES = ['f32', 'f16', 'q8_0'] as const;

describe.each(TYPES)('%s', (kvType) => {
  it.each(['nano-F32', 'nano-Q8_0', 'nano-Q4_0'])('%s in fast stays within 0.06', async (name) => {
    const folder = fixture(`golden/${name}`);
    const { ids } = readJson<{ ids: number[] }>(`${folder}/golden.json`);
    const options = {
      model: `${folder}/model.gguf`,
      contextLength: ids.length,
      precision: 'fast',
      kvType,
    } as const;
    await withEngine(options, async (engine) => {
      const { logits } = await score(engine, ids);
      const found = relativeRms(logits, readFloats(`${folder}/ref.f32`));
      expect(found).toBeLessThan(0.06);
    });
  });
});

describe('the built-in model', () => {
  const shape = openModel(BUILT_IN_MODEL).hyperparameters;

  it('in fast, f16 has the perplexity of f32 within 0.5 %, q8_0 within 1 %', async () => {
    const { ids } = tldrGolden().val;
    const perplexity: Record<string, number> = {};
    for (const kvType of TYPES) {
      await withEngine({ model: BUILT_IN_MODEL, precision: 'fast', kvType }, async (engine) => {
        let sum = 0;
        await engine.logits(ids.slice(0, -1), (row, position) => {
          sum += negativeLogLikelihood(row, ids[position + 1]!);
        });
        perplexity[kvType] = Math.exp(sum / (ids.length - 1));
      });
    }
    expect(Math.abs(perplexity.f16! / perplexity.f32! - 1)).toBeLessThan(0.005);
    expect(Math.abs(perplexity.q8_0! / perplexity.f32! - 1)).toBeLessThan(0.01);
  });

  it('plans for its type; fast takes f16 and exact f32 when nobody chose', async () => {
    const attention = shape.attentionLayers.reduce((sum, each) => sum + each, 0);
    const values = 2 * attention * shape.kvHeads * shape.headDim * 512;
    const bytes = { f32: 4 * values, f16: 2 * values, q8_0: (34 / 32) * values };
    for (const precision of ['fast', 'exact'] as const) {
      const options = { model: BUILT_IN_MODEL, precision, contextLength: 512 };
      const planned = (kvType?: keyof typeof bytes): Promise<number> =>
        withEngine(kvType === undefined ? options : { ...options, kvType }, async ({ plan }) => plan.kvBytes);
      expect(await planned()).toBe(precision === 'fast' ? bytes.f16 : bytes.f32);
      for (const kvType of TYPES) expect(await planned(kvType)).toBe(bytes[kvType]);
    }
  });

  it('refuses a type that is none, and heads that q8_0 cannot hold', () => {
    expect(() => settingsOf({ model: 'x', kvType: 'q4_0' as 'f16' })).toThrow(
      expect.objectContaining({ code: 'USAGE' }),
    );
    const settings = settingsOf({ model: 'x', kvType: 'q8_0' });
    expect(() => backendConfig({ ...shape, headDim: 80 }, settings, 64)).toThrow(
      expect.objectContaining({ code: 'MODEL_UNSUPPORTED' }),
    );
    const without = { ...shape, headDim: 0, attentionLayers: new Uint8Array(shape.layers) };
    expect(backendConfig(without, settings, 64).kvType).toBe('q8_0');
    expect(backendConfig(shape, settings, 64).kvType).toBe('q8_0');
  });
});
