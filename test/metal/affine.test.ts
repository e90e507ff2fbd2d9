/**
 * MLX's affine types on the Metal backend, its GPU emulated: every type alone beside the CPU, then whole checkpoints as
 * converters write them, whose tensors begin at any byte, in memory and streamed.
 */
import { join } from 'node:path';
import { beforeAll, beforeEach, describe, expect, it, test } from 'vitest';
import { settingsOf } from '../../dist/engine/options.js';
import { planOf } from '../../dist/engine/planning.js';
import type { OpenOptions } from '../../dist/index.js';
import { AFFINE_TYPE_IDS, tensorType } from '../../dist/model/affine-types.js';
import { openModel } from '../../dist/model/model.js';
import { loadCpu } from '../../dist/native.js';
import { pack } from '../../dist/pack/pack.js';
import { type RandomModelOptions, randomModel, runModel } from '../../dist/selftest/random-model.js';
import { makeModel } from '../../dist-scripts/scripts/model-maker/make-model.js';
import { mixture, type Quantization, writeCheckpoint } from '../support/checkpoint-builder.js';
import { generate, score, withEngine } from '../support/engine.js';
import { temporaryFolder } from '../support/folder.js';
import { fixture, readFloats, readJson, relativeRms } from '../support/golden.js';
import { type Emulator, loadEmulated, missingEmulator } from './emulator.js';

const SAME = 2e-5;
const backend = 'metal';
const { metal, emulator } =
  missingEmulator === undefined
    ? loadEmulated()
    : ({} as { metal: ReturnType<typeof loadEmulated>['metal']; emulator: Emulator });

const sizes = { kvType: 'f32', width: 128, contextLength: 32 } as const;
const modelOf = (options: Pick<RandomModelOptions, 'architecture' | 'type'>) =>
  randomModel(loadCpu(), { ...sizes, ...options });

describe.skipIf(missingEmulator !== undefined)('every affine type beside the CPU', () => {
  const types = AFFINE_TYPE_IDS.map((id) => [tensorType(id).name, id] as const);

  test.each(types)('%s', (_, type) => {
    for (const architecture of ['hybrid', 'plain'] as const) {
      const model = modelOf({ architecture, type });
      // Many rows, a few, and one: tiles, and products of rows.
      const steps = [7, 3, 1];
      const expected = runModel(loadCpu(), model, steps);
      const found = runModel(metal, model, steps);
      expect(found.routes).toEqual(expected.routes);
      expect(relativeRms(found.logits, expected.logits)).toBeLessThan(SAME);
    }
  });

  it('leaves out none of its bindings', () => {
    const model = modelOf({ architecture: 'hybrid', type: types[4]![1] });
    for (const steps of [[1], [6]]) {
      for (let binding = 0; binding < 150; binding += 7) {
        emulator.reset(false);
        emulator.inject('dropBinding', binding);
        expect(() => runModel(metal, model, steps)).toThrow(/is not bound|is left over/);
      }
    }
    emulator.reset(false);
  });

  it('refuses an expert whose scales and biases have no place', () => {
    const model = { ...modelOf({ architecture: 'plain', type: types[0]![1] }), sides: undefined };
    for (const addon of [loadCpu(), metal])
      expect(() => runModel(addon, model, [1])).toThrow('without the places of its scales and biases');
  });
});

const NANO = fixture('golden/nano-F32/model.gguf');
const NANO_MLX = fixture('mlx/nano-4bit');
const { ids } = readJson<{ ids: number[] }>(fixture('golden/nano-F32/golden.json'));

interface Scored {
  readonly logits: Float32Array;
  readonly experts: Int32Array;
}

const scored = (options: OpenOptions, tokens: readonly number[] = ids): Promise<Scored> =>
  withEngine({ contextLength: tokens.length, ...options }, (engine) => score(engine, tokens));

/** On both backends: the same numbers to rounding, and the same experts. */
async function expectSame(options: OpenOptions, tokens: readonly number[] = ids): Promise<Float32Array> {
  const onCpu = await scored({ ...options, backend: 'cpu' }, tokens);
  const onMetal = await scored({ ...options, backend }, tokens);
  expect(onMetal.experts).toEqual(onCpu.experts);
  expect(relativeRms(onMetal.logits, onCpu.logits)).toBeLessThan(SAME);
  return onMetal.logits;
}

describe.skipIf(missingEmulator !== undefined)('the committed MLX checkpoint', () => {
  it('has the logits of its weights in float32, in prefill and one by one', async () => {
    const reference = readFloats(fixture('mlx/nano-4bit.logits.f32'));
    expect(relativeRms(await expectSame({ model: NANO_MLX }), reference)).toBeLessThan(SAME);
    const oneByOne = await scored({ model: NANO_MLX, chunk: 1, backend });
    expect(relativeRms(oneByOne.logits, reference)).toBeLessThan(SAME);
  });

  it('packed, where the three arrays of a matrix stand behind each other', async () => {
    const packed = join(temporaryFolder(), 'nano.moes');
    await pack(NANO_MLX, packed);
    await expectSame({ model: packed });
  });

  it('mixes with a GGUF, whichever of them has the experts, the embedding or the head', async () => {
    const pure = await scored({ model: NANO, backend });
    for (const [base, other] of [
      [NANO, NANO_MLX],
      [NANO_MLX, NANO],
    ] as const) {
      const parts = [{ experts: other }, { embedding: other, lmHead: other }];
      for (const part of parts) {
        const logits = await expectSame({ model: base, ...part });
        expect(relativeRms(logits, pure.logits)).toBeGreaterThan(0.01);
      }
    }
  });
});

/** The mixture, but every matrix of a layer's input of another type, so that none shares a dispatch. */
function mixtureApart(module: string): Quantization | undefined {
  if (module.includes('in_proj_qkv')) return { bits: 6, group: 128 };
  if (module.includes('in_proj')) return { bits: 4, group: 128 };
  if (module.includes('out_proj')) return { bits: 3, group: 32 };
  return mixture(module);
}

describe.skipIf(missingEmulator !== undefined)('checkpoints as converters write them', () => {
  const folder = temporaryFolder();
  const gguf = join(folder, 'tiny.gguf');
  const tokens = [1, 5, 9, 200, 3, 3, 7, 250, 12, 40];
  const write = (name: string, quantize: typeof mixtureApart, skew: number): string => {
    writeCheckpoint(gguf, join(folder, name), { dialect: 'mlx', quantize, skew, shards: 2 });
    return join(folder, name);
  };
  beforeAll(async () => {
    await makeModel({ preset: 'tiny', mix: 'F32', experts: 12, expertsPerToken: 2, vocab: 300 }, gguf);
  });
  beforeEach(() => emulator.reset(false));

  test.each([0, 1, 2, 3])('tensors that begin %i bytes beyond a word', async (skew) => {
    await expectSame({ model: write(`mixture-${skew}`, mixtureApart, skew) }, tokens);
  });

  it('with a slab smaller than the model, the text of the CPU', async () => {
    const model = write('streamed', mixtureApart, 5);
    const base = { model, contextLength: 64, chunk: 8 } as const;
    const { plan } = planOf(openModel(model), settingsOf({ ...base, backend }));
    const options = { ...base, memory: plan.smallestBytes + Math.floor(plan.allExpertsBytes / 5) };
    const greedy = { temperature: 0, maxTokens: 12 };
    const expected = await withEngine({ ...options, backend: 'cpu' }, (engine) =>
      generate(engine, { ids: tokens }, greedy),
    );
    await withEngine({ ...options, backend }, async (engine) => {
      expect(engine.plan.slabBytes).toBeLessThan(engine.plan.allExpertsBytes / 2);
      expect((await generate(engine, { ids: tokens }, greedy)).tokens).toEqual(expected.tokens);
      const { created, committed, discarded, completed } = emulator.counts();
      expect([created, completed]).toEqual([committed + discarded, committed]);
    });
  });

  it('a matrix of plain numbers that begins at an odd byte is refused by name', async () => {
    const plain: typeof mixtureApart = (module) =>
      module.includes('out_proj') ? undefined : mixtureApart(module);
    const model = write('plain', plain, 1);
    await expect(scored({ model, backend }, tokens)).rejects.toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringMatching(
        /read F32 from multiples of 4 bytes, not from byte \d+: blk\.0\.ssm_out\.weight/,
      ),
    });
  });
});
