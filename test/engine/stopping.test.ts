/** Every way a generation can end, and that nothing is left behind. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { open } from '../../dist/index.js';
import { generate, withEngine } from '../support/engine.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL, fixture } from '../support/golden.js';

const model = BUILT_IN_MODEL;
const GREEDY = { temperature: 0 };

describe('a generation ends', () => {
  it('at the end-of-turn token', async () => {
    await withEngine({ model }, async (engine) => {
      const { finishReason, text } = await generate(engine, 'ls', { ...GREEDY });
      expect(finishReason).toBe('stop');
      expect(text).not.toContain('<|im_end|>');
    });
  });

  it('after maxTokens tokens', async () => {
    await withEngine({ model }, async (engine) => {
      for (const maxTokens of [1, 2, 9]) {
        const { finishReason, tokens } = await generate(engine, 'tar', { ...GREEDY, maxTokens });
        expect([finishReason, tokens.length]).toEqual(['length', maxTokens]);
      }
    });
  });

  it('before a stop string, whichever token it begins in', async () => {
    await withEngine({ model }, async (engine) => {
      const { text } = await generate(engine, 'tar', { ...GREEDY, maxTokens: 30 });
      const at = text.indexOf('utility');
      for (const stop of ['utility', 'ility. O', 'chiving']) {
        const cut = await generate(engine, 'tar', { ...GREEDY, maxTokens: 30, stop: ['never seen', stop] });
        expect(cut.finishReason).toBe('stop');
        expect(cut.text).toBe(text.slice(0, text.indexOf(stop)));
      }
      expect(at).toBeGreaterThan(0);
    });
  });

  it('when the context is full', async () => {
    await withEngine({ model, contextLength: 24 }, async (engine) => {
      const { finishReason, tokens } = await generate(engine, 'tar', GREEDY);
      expect(finishReason).toBe('context');
      expect(tokens.length + engine.promptIds('tar').length).toBe(24);
      await expect(async () => generate(engine, 'word '.repeat(40), GREEDY)).rejects.toMatchObject({
        code: 'CONTEXT_FULL',
      });
    });
  });

  it('when the signal fires, before, during the prompt and during the answer', async () => {
    await withEngine({ model }, async (engine) => {
      await expect(generate(engine, 'tar', { signal: AbortSignal.abort() })).rejects.toMatchObject({
        code: 'ABORTED',
      });
      const long = engine.generate({ raw: 'word '.repeat(3000) }, { signal: AbortSignal.timeout(30) });
      await expect(async () => {
        for await (const _ of long);
      }).rejects.toMatchObject({ code: 'ABORTED' });

      const controller = new AbortController();
      let pieces = 0;
      await expect(async () => {
        for await (const _ of engine.generate('tar', { ...GREEDY, signal: controller.signal })) {
          if (++pieces === 5) controller.abort();
        }
      }).rejects.toMatchObject({ code: 'ABORTED' });
      expect(pieces).toBeLessThanOrEqual(6);
      expect((await generate(engine, 'tar', { ...GREEDY, maxTokens: 5 })).tokens).toHaveLength(5);
    });
  });
});

describe('an engine', () => {
  it('is free again after a generation that could not begin', async () => {
    // A model without a vocabulary: token ids can go in, text cannot come out.
    const path = join(temporaryFolder(), 'mute.gguf');
    const bytes = readFileSync(fixture('golden/nano-F32/model.gguf'));
    bytes.write('x', bytes.indexOf('tokenizer.ggml.tokens'));
    writeFileSync(path, bytes);
    await withEngine({ model: path }, async (engine) => {
      for (let time = 0; time < 2; time++) {
        await expect(generate(engine, { ids: [1, 2, 3] }, { ...GREEDY, maxTokens: 2 })).rejects.toMatchObject(
          {
            code: 'MODEL_INVALID',
            message: expect.stringContaining('tokenizer'),
          },
        );
      }
      let rows = 0;
      await engine.logits([1, 2, 3], () => {
        rows++;
      });
      expect(rows).toBe(3);
    });
  });

  it('stays with the generation that has it', async () => {
    await withEngine({ model }, async (engine) => {
      const first = engine.generate('tar', { ...GREEDY, maxTokens: 3 })[Symbol.asyncIterator]();
      await first.next();
      for (let time = 0; time < 2; time++) {
        await expect(generate(engine, 'ls', GREEDY)).rejects.toMatchObject({ code: 'ENGINE_STATE' });
      }
      expect((await first.next()).done).toBe(false);
      await first.return?.();
      expect((await generate(engine, 'tar', { ...GREEDY, maxTokens: 2 })).tokens).toHaveLength(2);
    });
  });
});

describe('closing', () => {
  const openFiles = (): string[] => readdirSync('/proc/self/fd');
  const threads = (): number => readdirSync('/proc/self/task').length;

  it.skipIf(process.platform !== 'linux')(
    'leaves no thread and no file behind, however it ended',
    async () => {
      // The first engine loads add-ons and wakes the runtime's own threads.
      await withEngine({ model }, (engine) => generate(engine, 'tar', { maxTokens: 2 }));
      const before = { files: openFiles().length, threads: threads() };
      for (let round = 0; round < 3; round++) {
        await withEngine({ model }, (engine) => generate(engine, 'tar', { maxTokens: 2 }));
        const engine = await open({ model, readers: 4 });
        const running = engine.generate('tar', GREEDY)[Symbol.asyncIterator]();
        await running.next();
        await engine.close();
        await expect(open({ model, memory: 1000 })).rejects.toMatchObject({ code: 'PLAN_REFUSED' });
      }
      expect(openFiles().length).toBeLessThanOrEqual(before.files);
      expect(threads()).toBeLessThanOrEqual(before.threads);
    },
  );

  it('refuses work after it, and may be called twice', async () => {
    const engine = await open({ model, readers: 1 });
    await engine.close();
    await engine.close();
    await expect(generate(engine, 'tar', {})).rejects.toMatchObject({ code: 'ENGINE_STATE' });
  });
});
