/** The whole engine on the Metal backend, its GPU emulated: numbers, text, streaming, and a disk that fails. */
import { copyFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { settingsOf } from '../../dist/engine/options.js';
import { planOf } from '../../dist/engine/planning.js';
import { MoestreamError } from '../../dist/errors.js';
import type { Engine, OpenOptions } from '../../dist/index.js';
import { openModel } from '../../dist/model/model.js';
import { runCli } from '../support/cli.js';
import { generate, score, withEngine } from '../support/engine.js';
import { temporaryFolder } from '../support/folder.js';
import {
  BUILT_IN_MODEL,
  fixture,
  missingShared,
  readFloats,
  readJson,
  relativeRms,
  shared,
  tldrGolden,
} from '../support/golden.js';
import { type Emulator, loadEmulated, missingEmulator } from './emulator.js';

const backend = 'metal';
const emulator = missingEmulator === undefined ? loadEmulated().emulator : ({} as Emulator);
/** Every kernel of every type: 12 seconds where nothing else runs. */
const DOCTOR_MILLIS = 240_000;
const PROMPT = 'How do I use tar?';

const NANO = fixture('golden/nano-Q8_0/model.gguf');
const nanoIds = readJson<{ ids: number[] }>(fixture('golden/nano-Q8_0/golden.json')).ids;

/** A budget in which a quarter of the experts fit. */
function small(model: string): OpenOptions {
  const options = { model, contextLength: 64, chunk: 16, backend } as const;
  const { plan } = planOf(openModel(model), settingsOf(options));
  return { ...options, memory: plan.smallestBytes + Math.floor(plan.allExpertsBytes / 5) };
}

describe.skipIf(missingEmulator !== undefined)('golden values', () => {
  it.each(['nano-F32', 'nano-Q8_0', 'nano-Q4_0'])('%s against a float64 reference', async (name) => {
    const folder = fixture(`golden/${name}`);
    const { ids } = readJson<{ ids: number[] }>(`${folder}/golden.json`);
    const options = { model: `${folder}/model.gguf`, contextLength: ids.length, backend } as const;
    await withEngine(options, async (engine) => {
      expect(engine.backend).toBe('metal');
      const { logits } = await score(engine, ids);
      expect(relativeRms(logits, readFloats(`${folder}/ref.f32`))).toBeLessThan(1e-4);
    });
  });

  it('the trained model against the transformers implementation', async (context) => {
    const reason = missingShared('model/tldr-Q8_0.gguf');
    if (reason !== undefined) return context.skip(reason);
    const { ids, logits_file } = tldrGolden().chat;
    const options = { model: shared('model/tldr-Q8_0.gguf'), contextLength: 64, backend } as const;
    await withEngine(options, async (engine) => {
      const { logits } = await score(engine, ids);
      expect(relativeRms(logits, readFloats(shared(`model/golden/${logits_file}`)))).toBeLessThan(1e-4);
    });
  });
});

describe.skipIf(missingEmulator !== undefined)('the built-in model', () => {
  const open = { model: BUILT_IN_MODEL, contextLength: 64 } as const;
  const both = async <T>(work: (engine: Engine) => Promise<T>, chunk = 32): Promise<[T, T]> => [
    await withEngine({ ...open, chunk, backend: 'cpu' }, work),
    await withEngine({ ...open, chunk, backend }, work),
  ];

  it('gives the logits and routes of the CPU, decode those of prefill', async () => {
    const ids = await withEngine(open, async (engine) => engine.promptIds('tar'));
    const [onCpu, onMetal] = await both((engine) => score(engine, ids));
    expect(relativeRms(onMetal.logits, onCpu.logits)).toBeLessThan(2e-5);
    expect(onMetal.experts).toEqual(onCpu.experts);
    const oneByOne = await withEngine({ ...open, chunk: 1, backend }, (engine) => score(engine, ids));
    expect(relativeRms(oneByOne.logits, onMetal.logits)).toBeLessThan(2e-5);
    expect(oneByOne.experts).toEqual(onMetal.experts);
  });

  it('says what the CPU says, in exact and greedily', async () => {
    const [onCpu, onMetal] = await both((engine) =>
      generate(engine, 'tar', { temperature: 0, maxTokens: 10 }),
    );
    expect(onMetal.tokens).toEqual(onCpu.tokens);
  });
});

describe.skipIf(missingEmulator !== undefined)('streaming', () => {
  beforeEach(() => emulator.reset(false));

  it('with a slab smaller than the model, the same text, and few command buffers', async () => {
    const options = small(BUILT_IN_MODEL);
    const greedy = { temperature: 0, maxTokens: 6 };
    const expected = await withEngine({ ...options, backend: 'cpu' }, (engine) =>
      generate(engine, PROMPT, greedy),
    );
    await withEngine(options, async (engine) => {
      const { plan, model } = engine;
      const { layers, experts, expertsPerToken } = model.hyperparameters;
      expect(plan.slabBytes).toBeLessThan(plan.allExpertsBytes / 2);
      emulator.reset(false);
      const found = await generate(engine, PROMPT, greedy);
      expect(found.tokens).toEqual(expected.tokens);
      const { created, committed, discarded, waits, completed } = emulator.counts();
      const tokens = found.tokens.length;
      const prompt = engine.promptIds(PROMPT).length;
      process.stderr.write(
        `Metal, streaming, a prompt of ${prompt} and ${tokens} tokens, ${layers} layers: ${committed} command buffers, ` +
          `${waits} waits\n`,
      );
      expect([created, completed]).toEqual([committed + discarded, committed]);
      // Experts that arrive alone are sent off alone; the prompt's are as many as there are at most.
      expect(committed).toBeLessThanOrEqual(
        tokens * (layers * (expertsPerToken + 2) + 2) + layers * (experts + 2) + 2,
      );
      // A layer of the prompt waits where a slot that the GPU still reads is needed, else once.
      expect(waits).toBeLessThanOrEqual(tokens * (layers + 1) + layers * (experts + 1) + 2);
    });
  });

  it('a read that fails leaves no command buffer uncommitted, and nothing alive', async () => {
    const path = join(temporaryFolder(), 'shrinking.gguf');
    copyFileSync(BUILT_IN_MODEL, path);
    const before = emulator.live();
    await withEngine(small(path), async (engine) => {
      emulator.reset(false);
      const pieces: string[] = [];
      await expect(async () => {
        for await (const piece of engine.generate(PROMPT, { temperature: 1, seed: 3 })) {
          pieces.push(piece.text);
          if (pieces.length === 1) truncateSync(path, 12_000_000);
        }
      }).rejects.toMatchObject({ code: 'READ_SHORT' });
      const { created, committed, discarded, completed, failed } = emulator.counts();
      expect(created).toBe(committed + discarded);
      expect(completed + failed).toBe(committed);
    });
    const left = (): string[] =>
      Object.entries(emulator.live()).flatMap(([name, count]) => (count > (before[name] ?? 0) ? [name] : []));
    await expect.poll(left).toEqual(before.MTLFakeDevice === undefined ? ['MTLFakeDevice'] : []);
  });

  it('a GPU that fails ends the answer with its code; the next one is right', async () => {
    await withEngine({ model: NANO, backend }, async (engine) => {
      const greedy = { temperature: 0, maxTokens: 3 };
      const prompt = { ids: nanoIds.slice(0, 5) };
      const expected = await generate(engine, prompt, greedy);
      for (const [failure, code] of [
        ['timeout', 'GPU_TIMEOUT'],
        ['removed', 'GPU_LOST'],
      ] as const) {
        emulator.reset(false);
        emulator.inject(failure, 3);
        await expect(generate(engine, prompt, greedy)).rejects.toMatchObject({ code });
        expect(await generate(engine, prompt, greedy)).toEqual(expected);
      }
    });
  });

  it('a caller who ends an answer leaves nothing behind', async () => {
    await withEngine({ ...small(BUILT_IN_MODEL), memory: '300M' }, async (engine) => {
      emulator.reset(false);
      const stop = new AbortController();
      const answer = engine.generate(PROMPT, { temperature: 0, signal: stop.signal });
      await expect(async () => {
        for await (const piece of answer) if (piece.text !== '') stop.abort();
      }).rejects.toMatchObject({ code: 'ABORTED' });
      const { created, committed, discarded, completed } = emulator.counts();
      expect([created, completed]).toEqual([committed + discarded, committed]);
    });
  });
});

describe('which backend', () => {
  it.runIf(process.platform === 'linux')('auto is the CPU on Linux, without a word', async () => {
    const notices: string[] = [];
    const options = {
      model: BUILT_IN_MODEL,
      contextLength: 64,
      onNotice: (text: string) => notices.push(text),
    };
    await withEngine(options, async (engine) => expect(engine.backend).toBe('cpu'));
    // How files are read is another matter.
    expect(notices.filter((sentence) => sentence.includes('comput'))).toEqual([]);
  });

  it.runIf(process.platform === 'linux' && missingEmulator !== undefined)(
    'metal without Metal is GPU_UNAVAILABLE',
    async () => {
      await expect(withEngine({ model: BUILT_IN_MODEL, backend }, async () => {})).rejects.toThrow(
        MoestreamError,
      );
    },
  );

  it('doctor says what it found in 60 columns, and that the CPU computes rightly', async () => {
    const run = await runCli(['doctor', '--backend', 'cpu']);
    expect([run.code, run.stderr]).toEqual([0, '']);
    expect(run.stdout).toMatch(/^ok +built-in model on the CPU$/m);
    expect(run.stdout).toMatch(/^moestream would compute on the CPU$/m);
    // The processor's and the disk's names are as long as they are.
    const lines = run.stdout.split('\n').filter((line) => !/^(cpu|disk)/.test(line));
    expect(lines.filter((line) => line.length > 60)).toEqual([]);
  });

  it.skipIf(missingEmulator !== undefined)(
    'doctor checks every kernel and model on the emulated GPU',
    async () => {
      const run = await runCli(['doctor', '--backend', 'metal']);
      expect([run.code, run.stderr]).toEqual([0, '']);
      expect(run.stdout).not.toContain('FAILED');
      for (const name of ['matvec_q3_k', 'attention_f16', 'a model of IQ4_XS', 'built-in model on Metal'])
        expect(run.stdout).toMatch(new RegExp(`^ok +${name}`, 'm'));
      expect(run.stdout.split('\n').filter((line) => line.length > 60 && !/^(cpu|disk)/.test(line))).toEqual(
        [],
      );
    },
    DOCTOR_MILLIS,
  );
});
