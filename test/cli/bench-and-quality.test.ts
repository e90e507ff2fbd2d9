/** The measuring commands, as a user calls them. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { withLlamaBenchSpelling } from '#dist/cli/bench.js';
import { csvHead, csvLine, markdown } from '#dist/cli/bench-report.js';
import { tokenLine } from '#dist/cli/token-progress.js';
import { type BenchRow, seriesOf } from '#dist/eval/bench.js';
import type { CompareRow } from '#dist/eval/compare.js';
import { runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL, fixture, tldrGolden } from '../support/golden.js';

const folder = temporaryFolder();
const ids = join(folder, 'ids');
beforeAll(() => writeFileSync(ids, tldrGolden().val.ids.slice(0, 200).join('\n')));

const engine = ['--readers', '4', '--precision', 'exact', '--no-profile'];

describe('perplexity', () => {
  const perplexity = ['perplexity', BUILT_IN_MODEL, ...engine, '-q'];

  it('prints the number with its error, and says how it was made', async () => {
    const run = await runCli([...perplexity, '--ids', ids, '--tokens', '200']);
    expect([run.code, run.stderr]).toEqual([0, '']);
    expect(run.stdout).toMatch(
      /^PPL \d+\.\d{4} \+- \d+\.\d{4}\n {2}199 tokens scored: one continuous context of 200/,
    );
  });

  it('takes text from a pipe, and scores chunks of --context', async () => {
    const text = 'Archiving utility. Often combined with a compression method. '.repeat(12);
    const run = await runCli([...perplexity, '-f', '-', '--context', '64', '--chunks', '2', '--json'], {
      input: text,
      env: { MOESTREAM_CONTEXT: '16' },
    });
    expect(JSON.parse(run.stdout)).toMatchObject({
      scoredTokens: 62,
      method: "2 chunks of 64 tokens, the second half of each scored (llama.cpp's convention)",
    });
  });

  it('writes and compares probabilities', async () => {
    const base = join(folder, 'base.kl');
    const wrote = await runCli([...perplexity, '--ids', ids, '--tokens', '100', '--kl-base', base]);
    expect(wrote.stdout).toContain(`probabilities written to ${base}`);
    const same = await runCli([...perplexity, '--kl', base]);
    expect(same.stdout).toMatch(/KL divergence {4}\d\.\d+e-9 .*\n.*\n {2}same top token {3}100\.00 %/);
    const other = await runCli([...perplexity, '--kl', base, '--experts-per-token', '2', '--json']);
    expect(JSON.parse(other.stdout).divergence.meanKl).toBeGreaterThan(0.05);
  });

  it.each([
    [[], /no text to score/],
    [['--ids', ids, '-f', ids], /not both/],
    [['--ids', ids, '--tokens', '50', '--chunks', '2'], /leave out --chunks/],
    [['--ids', ids, '--kl', 'x'], /--kl brings its own text/],
    [['--ids', ids], /has 200 tokens, a context of 512/],
    [['--ids', ids, '--tokens', '1'], /at least 2/],
  ])('refuses %j', async (flags, message) => {
    const run = await runCli([...perplexity, ...flags]);
    expect([run.code, run.stdout]).toEqual([2, '']);
    expect(run.stderr).toMatch(message);
  });
});

describe('bench', () => {
  const bench = ['bench', BUILT_IN_MODEL, ...engine, '-q', '--ids', ids];

  it('measures every combination, in tests named as llama-bench names them', async () => {
    const flags = [
      '-p',
      '16',
      '-n',
      '8',
      '-pg',
      '16,8',
      '-d',
      '0,30',
      '-r',
      '2',
      '--split',
      '1,2',
      '-o',
      'jsonl',
    ];
    const run = await runCli([...bench, ...flags]);
    const rows = run.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as BenchRow);
    const tests = ['pp16', 'tg8', 'pp16+tg8', 'pp16 @ d30', 'tg8 @ d30', 'pp16+tg8 @ d30'];
    expect(rows.map((row) => [row.given.split, row.test])).toEqual(
      ['1', '2'].flatMap((split) => tests.map((test) => [split, test])),
    );
    for (const row of rows) {
      expect(row).toMatchObject({
        repetitions: 2,
        cache: { mode: 'warm' },
        bytesReadPerToken: 0,
        hitRate: 1,
      });
      expect(row.samples.length).toBe(2);
      expect(row.tokensPerSecond.mean).toBeCloseTo((row.samples[0]! + row.samples[1]!) / 2, 6);
    }
  });

  it('cold: every repetition reads anew, and it is said how', async () => {
    const flags = ['-p', '0', '-n', '8', '-r', '3', '--cold', '--io', 'buffered', '-o', 'json'];
    const [row] = JSON.parse((await runCli([...bench, ...flags])).stdout) as BenchRow[];
    expect(row!.cache).toMatchObject({
      mode: 'cold',
      sentence: expect.stringMatching(/^the expert cache is empty/),
    });
    expect(row!.bytesReadPerToken).toBeGreaterThan(100_000);
  });

  it('sustained: one long answer, and its speed over time', async () => {
    const flags = ['--sustained', '100', '-o', 'json'];
    const [row] = JSON.parse((await runCli([...bench, ...flags])).stdout) as BenchRow[];
    expect(row!.series!.map(({ fromToken, toToken }) => [fromToken, toToken])).toEqual(
      Array.from({ length: 10 }, (_, part) => [part * 10 + 1, part * 10 + 10]),
    );
    const table = await runCli([...bench, '--sustained', '20']);
    expect(table.stdout).toMatch(
      /^\| model .*\n\|:--.*\n\| .* tg20 \|[\s\S]*tg20 over time[\s\S]*The last quarter takes/,
    );
  });

  it('prints what was measured before Ctrl-C', async () => {
    const run = await runCli([...bench, '-p', '8', '-n', '100', '-r', '1', '-d', '0,1,2,3', '-o', 'jsonl'], {
      onStdout: (_, kill) => kill('SIGINT'),
    });
    expect(run.code).toBe(130);
    expect(run.stdout).toMatch(/^\{.*"test":"pp8"/);
  });

  it.each([
    [['-p', '0', '-n', '0'], /nothing to measure/],
    [['-r', '0'], /-r 0/],
    [['-pg', '5'], /-pg 5: expected a prompt and an answer/],
    [['--threads', '1-256', '--readers', '1,2'], /512 combinations, at most 256/],
    [['--readers', '9-2'], /does not get from 9 to 2/],
  ])('refuses %j', async (flags, message) => {
    const run = await runCli([...bench, ...flags]);
    expect([run.code, run.stdout]).toEqual([2, '']);
    expect(run.stderr).toMatch(message);
  });

  it('leaves other commands their own -pg', () => {
    expect(withLlamaBenchSpelling(['node', 'm', 'bench', '-pg', '1,2'])).toContain('--prompt-gen');
    expect(withLlamaBenchSpelling(['node', 'm', 'generate', '-pg'])).toContain('-pg');
  });
});

const ROW: BenchRow = {
  model: 'a,"b".gguf',
  name: 'a model with a long name',
  sizeBytes: 30_234_880,
  given: { readers: '16' },
  test: 'tg128 @ d4096',
  promptTokens: 0,
  decodeTokens: 128,
  depthTokens: 4096,
  repetitions: 1,
  cache: { mode: 'cold', sentence: '' },
  tokensPerSecond: {
    count: 1,
    mean: 8.6,
    standardDeviation: 0.1,
    median: 8.6,
    medianAbsoluteDeviation: 0,
    least: 8.6,
    most: 8.6,
  },
  interval: { low: 8.6, high: 8.6 },
  samples: [8.6],
  prefillTokensPerSecond: null,
  decodeTokensPerSecond: 8.6,
  firstTokenMillis: 900,
  tokenMillisP50: 116,
  tokenMillisP99: 190.5,
  bytesReadPerToken: 218e6,
  hitRate: 0.25,
  stallShare: 0.5,
  othersShare: 0,
  throttledMillis: 0,
};

describe('reports', () => {
  it('a table fits 60 columns, and keeps what it is about', () => {
    const wide = markdown([ROW]);
    expect(wide).toContain('218 MB');
    const narrow = markdown([ROW], 60);
    for (const line of narrow.trimEnd().split('\n')) expect(line.length).toBeLessThanOrEqual(60);
    expect(narrow).toMatch(/readers .* test .* t\/s/);
  });

  it('CSV quotes what needs it', () => {
    expect(csvLine(ROW)).toMatch(/^"a,""b""\.gguf",a model/);
    expect(
      csvLine(ROW)
        .replace(/^"[^\n]*?",a/, 'x,a')
        .split(',').length,
    ).toBe(csvHead().split(',').length);
  });

  it('the progress line fits 60 columns', () => {
    expect(tokenLine(964, 2048, 17, 'PPL 12.34')).toBe('[#####       ]  47 %  964 of 2048  0:17  PPL 12.34');
    expect(tokenLine(1e9, 2e9, 1e6, 'PPL 123456.789').length).toBeLessThanOrEqual(60);
  });

  it('a run that slows down is seen', () => {
    const { series, slowdown } = seriesOf(Array.from({ length: 95 }, (_, token) => (token < 50 ? 10 : 20)));
    expect(slowdown).toBe(2);
    expect(series.at(0)).toEqual({ fromToken: 1, toToken: 10, tokensPerSecond: 100 });
    expect(series.at(-1)).toEqual({ fromToken: 91, toToken: 95, tokensPerSecond: 50 });
  });
});

describe('compare', () => {
  it('puts settings beside each other, and keeps a row for one that fails', async () => {
    const flags = ['--ids', ids, '--tokens', '100', '--experts-per-token', '4,2', '--memory', '80M,5M'];
    const run = await runCli([
      'compare',
      BUILT_IN_MODEL,
      ...engine,
      '-q',
      ...flags,
      '-p',
      '8',
      '-n',
      '8',
      '-r',
      '2',
      '--json',
    ]);
    const { rows } = JSON.parse(run.stdout) as { rows: CompareRow[] };
    expect(rows.map((row) => row.failure?.code)).toEqual([
      undefined,
      undefined,
      'PLAN_REFUSED',
      'PLAN_REFUSED',
    ]);
    const [four, two] = rows;
    expect(four!.divergence).toBeUndefined();
    expect(two!.divergence!.meanKl).toBeGreaterThan(0.05);
    expect(two!.quality!.perplexity).toBeGreaterThan(four!.quality!.perplexity);
    expect(two!.expertBytesPerToken * 2).toBe(four!.expertBytesPerToken);
    expect(two!.speed!.decodeTokensPerSecond.count).toBe(2);
  });

  it('says that other vocabularies cannot be compared', async () => {
    const nano = fixture('golden/nano-F32/model.gguf');
    const few = join(folder, 'few');
    writeFileSync(few, '1 2 3 4 5 6 7 8 9 10');
    const run = await runCli([
      'compare',
      nano,
      BUILT_IN_MODEL,
      ...engine,
      '--ids',
      few,
      '--tokens',
      '10',
      '-r',
      '0',
    ]);
    expect(run.code).toBe(0);
    expect(run.stderr).toMatch(/another vocabulary than model: their perplexities must not be compared/);
    expect(run.stdout).toMatch(/\| tldr-UD_Q3_K_XL .*± [\d.]+ \|\s+\|\s+\|\s+\|/);
  });
});
