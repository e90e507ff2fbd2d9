/** `moestream requantize` as a user calls it: a file that runs, and what it says about what was lost. */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';

const root = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const MODEL = root('models/tldr-UD_Q3_K_XL.gguf');

describe('requantize', () => {
  it('writes a model that runs, and measures a text before and after', async () => {
    const output = join(temporaryFolder(), 'q8.gguf');
    const text = root('models/bench-text.txt');
    const run = await runCli(['requantize', MODEL, '--experts', 'Q8_0', '-o', output, '-f', text, '--json']);
    expect(run.code).toBe(0);
    const { before, after, losses } = JSON.parse(run.stdout);
    // From 3 bits to 8: the loss is that of rounding once more to 8.
    expect(losses.every(({ relativeError }: { relativeError: number }) => relativeError < 0.01)).toBe(true);
    expect(after.perplexity / before.perplexity).toBeGreaterThan(0.99);
    expect(after.perplexity / before.perplexity).toBeLessThan(1.01);
    expect(after.digest).not.toBe(before.digest);
    const answer = await runCli([
      'generate',
      '-m',
      output,
      '-n',
      '4',
      '--temp',
      '0',
      '--precision',
      'exact',
      'tar',
    ]);
    expect(answer.stdout).toMatch(/^# tar/);
  });

  it('says what it can write', async () => {
    const run = await runCli([
      'requantize',
      MODEL,
      '--experts',
      'Q5_1',
      '-o',
      join(temporaryFolder(), 'x.gguf'),
    ]);
    expect(run.code).toBe(2);
    expect(run.stderr).toContain('Choose one of Q8_0, Q4_0, Q4_K, IQ4_NL.');
  });
});
