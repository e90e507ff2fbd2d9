/** A measured run does the work that an answer does, counts each part of it, and says what the caches held. */
import { execFileSync, spawn } from 'node:child_process';
import { copyFileSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { dropFromPageCache, fileCache } from '#dist/eval/cold.js';
import { engineOf, watchMachine } from '#dist/eval/machine.js';
import { measureRun, type RunRequest } from '#dist/eval/measure-run.js';
import { withEngine } from '../support/engine.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL, tldrGolden } from '../support/golden.js';

const { ids } = tldrGolden().prose;
const request: RunRequest = {
  options: { model: BUILT_IN_MODEL, precision: 'exact', readers: 4 },
  source: { ids },
  promptTokens: 40,
  decodeTokens: 20,
  depthTokens: 30,
};

describe('a replayed answer', () => {
  it('takes the same way as a sampled one: the same tokens by the same logits', async () => {
    await withEngine({ model: BUILT_IN_MODEL }, async (engine) => {
      const greedy = engine.generate('How do I use tar?', { temperature: 0, maxTokens: 25 });
      const tokens: number[] = [];
      for await (const { token } of greedy) if (token !== undefined) tokens.push(token);
      expect(tokens.length).toBe(25);
      // The row behind the last token is the replay's alone: it is fed all the tokens, the greedy one all but the last.
      const replay = engine.replay(greedy.promptIds, tokens.slice(0, -1));
      const replayed: number[] = [];
      for await (const { token } of replay) if (token !== undefined) replayed.push(token);
      expect(replayed).toEqual(tokens.slice(0, -1));
      expect(replay.totals.sample!.drawnHash).toBe(greedy.totals.sample!.drawnHash);
      expect(replay.totals.compute.decode.tokens).toBe(24);
    });
  });

  it('feeds its tokens whatever they mean: the end of a turn does not end it', async () => {
    await withEngine({ model: BUILT_IN_MODEL }, async (engine) => {
      const end = [...engine.model.tokenizer.eogIds][0]!;
      const replay = engine.replay([1, 2, 3], [end, 5, end, 7]);
      const pieces: (number | undefined)[] = [];
      for await (const { token } of replay) pieces.push(token);
      expect(pieces.filter((token) => token !== undefined)).toEqual([end, 5, end, 7]);
      expect(replay.totals.compute.decode.tokens).toBe(4);
    });
  });

  it('is refused where it does not fit', async () => {
    await withEngine({ model: BUILT_IN_MODEL, contextLength: 8 }, async (engine) => {
      expect(() => engine.replay([1, 2, 3, 4, 5], [6, 7, 8, 9])).toThrow(
        expect.objectContaining({ code: 'CONTEXT_FULL' }),
      );
      expect(() => engine.replay([1, 2], [3], { depthTokens: 2 })).toThrow(
        expect.objectContaining({ code: 'USAGE' }),
      );
    });
  });
});

describe('logits', () => {
  it('from a position on, and token by token, are the same rows', async () => {
    await withEngine({ model: BUILT_IN_MODEL }, async (engine) => {
      const rows = async (options: { from?: number; decodeFrom?: number }): Promise<Map<number, Buffer>> => {
        const found = new Map<number, Buffer>();
        await engine.logits(
          ids.slice(0, 20),
          (row, position) => {
            found.set(position, Buffer.from(new Float32Array(row).buffer));
          },
          options,
        );
        return found;
      };
      const all = await rows({});
      for (const options of [
        { from: 12 },
        { decodeFrom: 1 },
        { from: 12, decodeFrom: 7 },
        { from: 7, decodeFrom: 12 },
      ]) {
        const some = await rows(options);
        expect([...some.keys()]).toEqual([...all.keys()].slice(options.from ?? 0));
        for (const [position, row] of some) expect(row.equals(all.get(position)!)).toBe(true);
      }
      for (const wrong of [{ from: 21 }, { from: -1 }, { decodeFrom: 0 }, { decodeFrom: 1.5 }]) {
        await expect(rows(wrong)).rejects.toMatchObject({ code: 'USAGE' });
      }
    });
  });
});

describe('a measured run', () => {
  it('counts prompt and answer apart from the context before', async () => {
    const { prefill, decode, tokenMillis, ...run } = await measureRun(request);
    expect([prefill?.tokens, decode?.tokens, tokenMillis.length]).toEqual([40, 20, 20]);
    expect(tokenMillis.every((millis) => millis > 0)).toBe(true);
    const sum = tokenMillis.reduce((total, millis) => total + millis);
    expect(sum).toBeLessThanOrEqual(decode!.millis + 0.001);
    expect(sum).toBeGreaterThan(0.5 * decode!.millis);
    expect(run.tokenMillisP99).toBeGreaterThanOrEqual(run.tokenMillisP50!);
    expect(run.firstTokenMillis).toBeGreaterThan(prefill!.millis);
  });

  it('warm: every expert is there; cold: none is; and the draws are the same', async () => {
    const warm = await measureRun({ ...request, cache: 'warm' });
    expect(warm.decode).toMatchObject({ bytesRead: 0, hitRate: 1, stallShare: 0 });
    // What a chunk reads ahead of itself is found like what was there.
    const options = { ...request.options, predict: 'none' };
    const cold = await measureRun({ ...request, options, depthTokens: 0, cache: 'cold' });
    expect(cold.prefill!.hits).toBe(0);
    expect(cold.prefill!.bytesRead).toBeGreaterThan(5e6);
    const asIs = await measureRun({ ...request, cache: 'as-is' });
    expect(asIs.drawn).toBe(warm.drawn);
    expect(cold.drawn).not.toBe(warm.drawn);
    expect([warm, cold, asIs].map((run) => run.cache.mode)).toEqual(['warm', 'cold', 'as-is']);
  });

  it('draws the same with settings that change no bit, and others with one that does', async () => {
    const drawn = async (options: Partial<RunRequest['options']>): Promise<string> =>
      (await measureRun({ ...request, cache: 'as-is', options: { ...request.options, ...options } })).drawn;
    const expected = await drawn({});
    expect(await drawn({ predict: 'temporal', split: 4, chunk: 8, threads: 1, memory: '40M' })).toBe(
      expected,
    );
    expect(await drawn({ expertsPerToken: 3 })).not.toBe(expected);
  });

  it('goes through a short text again, and says so', async () => {
    const notices: string[] = [];
    await measureRun(
      { ...request, source: { ids: ids.slice(0, 50) } },
      { notice: (sentence) => notices.push(sentence) },
    );
    expect(notices).toContain('the text has 50 tokens and 90 are measured: it is gone through again');
  });
});

describe('the machine', () => {
  it('shows who else computes', async () => {
    const idle = watchMachine();
    const spinner = spawn(process.execPath, [
      '-e',
      'const end = Date.now() + 600; while (Date.now() < end);',
    ]);
    await new Promise((resolve) => spinner.on('close', resolve));
    expect(idle().othersShare).toBeGreaterThan(0.4 / cpus().length);
  });

  it.each([
    [['/usr/bin/node', '/usr/lib/node_modules/moestream/dist/cli/main.js', 'bench'], 'another moestream'],
    [['/opt/llama.cpp/llama-server', '-m', 'x.gguf'], 'llama-server'],
    [['/usr/local/bin/ollama', 'serve'], 'ollama'],
    [['python3', '-u', '/venv/bin/vllm', 'serve'], 'vllm'],
    [['/usr/bin/vim', 'llama-notes.txt'], undefined],
    [['node', 'server.js'], undefined],
    [[''], undefined],
  ])('knows an engine by its command: %j', (words, engine) => {
    expect(engineOf(words)).toBe(engine);
  });
});

/** tmpfs has nothing but its cache. */
function onDisk(path: string): boolean {
  return (
    process.platform === 'linux' && !/tmpfs/.test(execFileSync('df', ['-PT', path], { encoding: 'utf8' }))
  );
}

describe('the page cache', () => {
  it('is seen, and dropped', (context) => {
    const path = join(temporaryFolder(), 'model.gguf');
    copyFileSync(BUILT_IN_MODEL, path);
    if (!onDisk(path)) return context.skip('needs a file on a disk, and Linux');
    const { length } = readFileSync(path);
    expect(fileCache([path])).toMatchObject({ sizeBytes: length });
    expect(fileCache([path]).cachedBytes).toBeGreaterThan(0.9 * length);
    expect(dropFromPageCache([path])).toBe(true);
    expect(fileCache([path]).cachedBytes).toBeLessThan(0.1 * length);
  });

  it('is dropped before a cold buffered run', async (context) => {
    const path = join(temporaryFolder(), 'model.gguf');
    copyFileSync(BUILT_IN_MODEL, path);
    if (!onDisk(path)) return context.skip('needs a file on a disk, and Linux');
    const options = { ...request.options, model: path, io: 'buffered' as const };
    const { cache } = await measureRun({ ...request, options, cache: 'cold' });
    expect(cache.sentence).toMatch(
      /the page cache was dropped \((0 B|\d+(\.\d+)? [KM]?B) of the model are left in it\)/,
    );
  });
});
