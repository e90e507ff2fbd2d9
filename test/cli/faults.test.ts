/** When the disk fails: a typed error at once, no word after it, never a wrong answer and never a hang. */
import { copyFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readGguf } from '../../dist/model/gguf.js';
import { faultyReadsEnv, runCli } from '../support/cli.js';
import { withEngine } from '../support/engine.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

/** Preloading reaches pread, not io_uring: that engine's faults come from files that really change, below. */
const THREADS = ['--io-engine', 'threads', '--readers', '4'];
const GENERATE = ['generate', '-m', BUILT_IN_MODEL, '--temp', '0', ...THREADS, '-n', '20', 'tar'];
const linux = process.platform === 'linux';

/** The bytes of one matrix of all experts of a layer, from its second page on: what lies before is read with it. */
function rangeOf(tensor: string): [from: number, to: number] {
  const { offsetBytes, byteLength } = readGguf(BUILT_IN_MODEL).tensors.get(tensor)!;
  return [offsetBytes + 8192, offsetBytes + byteLength - 8192];
}

describe.skipIf(!linux)('reads that fail', () => {
  const experts = rangeOf('blk.3.ffn_up_exps.weight');

  it.each(['direct', 'buffered'])('an unreadable page of an expert, %s', async (io) => {
    const run = await runCli([...GENERATE, '--io', io], { env: faultyReadsEnv('eio', ...experts) });
    expect(run.code).toBe(1);
    expect(run.stderr).toMatch(
      /EIO reading .*tldr-UD_Q3_K_XL\.gguf at byte \d+ \(expert \d+ of layer 3\) \(READ_FAILED\)/,
    );
    expect(run.stdout).toBe('');
  });

  it('a page of the dense weights', async () => {
    const run = await runCli(GENERATE, { env: faultyReadsEnv('eio', ...rangeOf('output.weight')) });
    expect([run.code, run.stdout]).toEqual([1, '']);
    expect(run.stderr).toMatch(/EIO .*dense weights.*READ_FAILED/);
  });

  it('a file that ends before its header says', async () => {
    const run = await runCli(GENERATE, { env: faultyReadsEnv('eof', ...experts) });
    expect([run.code, run.stdout]).toEqual([1, '']);
    expect(run.stderr).toMatch(/only \d+ bytes of .*expert \d+ of layer 3.*READ_SHORT/);
  });

  it.each(['short', 'eintr', 'slow'])('%s reads change nothing', async (mode) => {
    const healthy = await runCli(GENERATE);
    const run = await runCli(GENERATE, { env: faultyReadsEnv(mode, ...experts) });
    expect(run.code).toBe(0);
    expect(run.stdout).toBe(healthy.stdout);
  });
});

describe('files that change', () => {
  it('a truncated file is refused when it is opened', async () => {
    const path = join(temporaryFolder(), 'short.gguf');
    copyFileSync(BUILT_IN_MODEL, path);
    truncateSync(path, 20_000_000);
    const run = await runCli(['generate', '-m', path, 'tar']);
    expect([run.code, run.stdout]).toEqual([3, '']);
    expect(run.stderr).toMatch(/ends at byte \d+, the file has 20000000.*MODEL_INVALID/);
  });

  it.each(['threads', 'uring'] as const)(
    'a file that shrinks while it is used ends the generation: %s',
    async (ioEngine) => {
      const path = join(temporaryFolder(), 'shrinking.gguf');
      copyFileSync(BUILT_IN_MODEL, path);
      await withEngine({ model: path, ioEngine }, async (engine) => {
        const pieces: string[] = [];
        const generation = engine.generate('Write about everything', { temperature: 1, seed: 3 });
        await expect(async () => {
          for await (const piece of generation) {
            pieces.push(piece.text);
            if (pieces.length === 2) truncateSync(path, 12_000_000);
          }
        }).rejects.toMatchObject({
          code: 'READ_SHORT',
          message: /shrinking\.gguf at byte \d+ \(expert \d+ of layer \d+\)/,
        });
      });
    },
  );

  it('a file that is deleted while it is used goes on working', async () => {
    const path = join(temporaryFolder(), 'deleted.gguf');
    copyFileSync(BUILT_IN_MODEL, path);
    await withEngine({ model: path }, async (engine) => {
      const { rmSync } = await import('node:fs');
      rmSync(path);
      let text = '';
      for await (const piece of engine.generate('tar', { temperature: 0, maxTokens: 12 })) text += piece.text;
      expect(text).toMatch(/^# tar/);
    });
  });
});
