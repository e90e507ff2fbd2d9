/** sweep, tune, config and research as a user calls them, on the built-in model. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { researchText } from '#dist/cli/research.js';
import { sweepText } from '#dist/cli/sweep.js';
import { profileKey } from '#dist/eval/profile/key.js';
import { storeEntry } from '#dist/eval/profile/store.js';
import { readLog } from '#dist/eval/research/log.js';
import type { SweepResult } from '#dist/eval/sweep.js';
import { Random } from '#dist/workers/random.js';
import { runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';

const MODEL = fileURLToPath(new URL('../../models/tldr-UD_Q3_K_XL.gguf', import.meta.url));
const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const SMALL = ['--memory', '25M', '-c', '256', '-p', '8', '-n', '8'];
const env = { XDG_CACHE_HOME: temporaryFolder() };

/** What it printed until the signal that it is sent after that time, and how it ended. */
function killedAfter(args: readonly string[], millis: number, signal: NodeJS.Signals): Promise<string> {
  const child = spawn(process.execPath, [MAIN, ...args], { env: { ...process.env, ...env } });
  let output = '';
  child.stdout.on('data', (text) => {
    output += text;
  });
  const timer = setTimeout(() => child.kill(signal), millis);
  return new Promise((resolve) => {
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve(`${output}[code ${code}]`);
    });
  });
}

describe('sweep', () => {
  it('measures a grid, and what fails in it is said', async () => {
    const { code, stdout } = await runCli(
      ['sweep', MODEL, ...SMALL, '--split', '1,2', '--window', '2,256', '--rounds', '1', '--json', '-q'],
      { env },
    );
    expect(code).toBe(0);
    const found = JSON.parse(stdout) as SweepResult;
    expect(found).toMatchObject({ score: 'decode', rounds: 2, interrupted: false });
    expect(found.rows.map(({ settings }) => settings)).toEqual([
      { split: 1, window: 2 },
      { split: 1, window: 256 },
      { split: 2, window: 2 },
      { split: 2, window: 256 },
    ]);
    expect(found.rows[0]?.scores.every((score) => score !== null && score > 0)).toBe(true);
    expect(found.rows[1]?.failure).toMatchObject({ code: 'USAGE' });
    expect(found.rows[2]?.drawn).toEqual(found.rows[0]?.drawn);
    for (const columns of [60, 80, 120]) {
      const text = sweepText(
        found,
        [
          ['split', [1, 2]],
          ['window', [2, 256]],
        ],
        columns,
      );
      const measured = text.split('\n').filter((line) => !/failed:|fastest:|medians/.test(line));
      expect(Math.max(...measured.map((line) => line.length))).toBeLessThanOrEqual(columns);
      expect(text).toContain('split 1 window 256 failed: ');
    }
  });

  it('prints what there is when it is interrupted', async () => {
    const args = ['sweep', MODEL, ...SMALL, '--readers', '1-8', '--rounds', '100', '-q'];
    const output = await killedAfter(args, 4000, 'SIGINT');
    expect(output).toMatch(/interrupted after \d+ of 800 runs/);
    expect(output).toMatch(/\[code 130\]$/);
  });

  it.each([
    [['--split', '4-1'], /does not get from 4 to 1/],
    [['--split', '4'], /nothing varies/],
    [['--cache-policy', 'lru,best'], /Allowed choices are lru/],
    [['--split', '1,2', '--rounds', '0'], /--rounds 0/],
  ])('refuses %j', async (args, message) => {
    const { code, stderr } = await runCli(['sweep', MODEL, ...args], { env });
    expect(code).toBe(2);
    expect(stderr).toMatch(message);
  });
});

describe('tune', () => {
  it('keeps to its time, and says what it did not reach', async () => {
    const args = ['tune', MODEL, ...SMALL, '--budget-minutes', '0.1', '--json', '-q'];
    const { code, stdout, stderr } = await runCli(args, { env });
    expect(code, stderr).toBe(0);
    const found = JSON.parse(stdout) as { secondsUsed: number; untried: string[] };
    expect(found).toMatchObject({ winner: null, profile: null });
    expect(found.secondsUsed).toBeLessThanOrEqual(6);
    expect(found.untried).toContain('window');
  });

  it('goes on where it was killed', async () => {
    const cache = { XDG_CACHE_HOME: temporaryFolder() };
    const args = ['tune', MODEL, ...SMALL, '--budget-minutes', '60', '--split', '1'];
    const journal = (): string[] => {
      const folder = join(cache.XDG_CACHE_HOME, 'moestream', 'tuning');
      const names = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith('.jsonl')) : [];
      return names.flatMap((name) => readFileSync(join(folder, name), 'utf8').trimEnd().split('\n'));
    };
    const first = spawn(process.execPath, [MAIN, ...args], {
      env: { ...process.env, ...cache },
      stdio: 'ignore',
    });
    const ended = once(first, 'close');
    // The head, and a round that was measured.
    await expect.poll(() => journal().length, { timeout: 40_000 }).toBeGreaterThan(1);
    first.kill('SIGKILL');
    await ended;
    const found = await runCli(args, {
      env: cache,
      onStderr: (text, kill) => {
        if (text.includes('going on behind')) kill('SIGINT');
      },
    });
    expect(found.stderr).toMatch(/going on behind \d+ rounds/);
    expect(found.stderr).toContain('interrupted; the same command goes on from here');
    expect(found.code).toBe(130);
  });

  it.each([
    [['--budget-minutes', '0'], /--budget-minutes 0/],
    [['--score', 'decode', '-n', '0'], /the score decode needs tokens/],
    [['--no-profile'], /unknown option/],
  ])('refuses %j', async (args, message) => {
    const { code, stderr } = await runCli(['tune', MODEL, ...args], { env });
    expect(code).toBe(2);
    expect(stderr).toMatch(message);
  });
});

describe('config', () => {
  it('says where every value comes from, and generate takes them', async () => {
    process.env.XDG_CACHE_HOME = env.XDG_CACHE_HOME;
    storeEntry(
      profileKey(MODEL)!,
      {
        budgetBytes: 25_000_000,
        settings: { readers: 4, split: 2, queueDepth: 32, threads: 2, window: 1 },
        tunedAt: '2026-11-21T10:00:00.000Z',
        score: 'total',
        gain: { ratio: 1.1, low: 1.05, high: 1.2, p99Ratio: 1 },
      },
      () => {},
    );
    const config = await runCli(['config', MODEL, '--memory', '25M', '--readers', '2', '--json'], {
      env: { ...env, MOESTREAM_THREADS: '1' },
    });
    expect(config.code, config.stderr).toBe(0);
    const rows = (JSON.parse(config.stdout) as { settings: { setting: string }[] }).settings;
    const rowOf = (setting: string) => rows.find((row) => row.setting === setting);
    expect(rowOf('readers')).toMatchObject({ value: 2, from: 'flag' });
    expect(rowOf('threads')).toMatchObject({ value: 1, from: 'environment', detail: 'MOESTREAM_THREADS' });
    expect(rowOf('split')).toMatchObject({ value: 2, from: 'profile' });
    expect(rowOf('queueDepth')).toMatchObject({ value: 32, from: 'profile' });
    expect(rowOf('window')).toMatchObject({
      value: 2,
      from: 'default',
      detail: "not the profile's 1: readers is given",
    });
    expect(rowOf('chunk')).toMatchObject({ value: null, from: 'default' });

    const generate = [
      'generate',
      '-m',
      MODEL,
      '--memory',
      '25M',
      '-c',
      '64',
      '-n',
      '4',
      '--temp',
      '0',
      'tar',
    ];
    const withProfile = await runCli(generate, { env });
    expect(withProfile.stderr).toContain('using the profile of');
    const without = await runCli([...generate, '--no-profile'], { env });
    expect(without.stderr).not.toContain('profile');
    expect(without.stdout).toBe(withProfile.stdout);
  });
});

describe('research', () => {
  const plan = `
baseline: { model: ${JSON.stringify(MODEL)}, settings: { memory: 25M, contextLength: 256 } }
run: { promptTokens: 4, decodeTokens: 4 }
rounds: 2
gates: { perplexity: { tokens: 16 } }
experiments:
  - { name: split, settings: { split: 2 } }
  - { name: refused, settings: { memory: 1M } }
  - { name: readers, settings: { readers: 4 } }
`;

  it('survives kill -9 at random moments', async () => {
    const folder = temporaryFolder();
    const file = join(folder, 'plan.yaml');
    writeFileSync(file, plan);
    const out = join(folder, 'out');
    const random = new Random(5);
    for (let kill = 0; kill < 4; kill++) {
      await killedAfter(['research', file, '--out', out], 800 + 2500 * random.next(), 'SIGKILL');
    }
    const html = join(folder, 'report.html');
    const { code, stdout, stderr } = await runCli(['research', file, '--out', out, '--html', html], { env });
    expect(code, stderr).toBe(0);
    const { results } = readLog(out);
    expect(results.map(({ name, rounds }) => `${name} ${rounds.length}`)).toEqual([
      'baseline 2',
      'split 2',
      'refused 0',
      'readers 2',
    ]);
    expect(results[2]).toMatchObject({ verdict: 'error', reason: expect.stringContaining('PLAN_REFUSED') });
    expect(stdout.trimEnd().split('\n').length).toBeGreaterThan(5);
    expect(
      Math.max(
        ...researchText(results, 60)
          .split('\n')
          .map((line) => line.length),
      ),
    ).toBeLessThanOrEqual(60);
    expect(readFileSync(html, 'utf8')).toContain('refused');
  }, 180_000);

  it('is refused while another process works on the results', async () => {
    const folder = temporaryFolder();
    const file = join(folder, 'plan.yaml');
    writeFileSync(file, plan);
    const first = spawn(process.execPath, [MAIN, 'research', file, '-q'], {
      env: { ...process.env, ...env },
    });
    const ended = once(first, 'close');
    await expect
      .poll(() => existsSync(join(folder, 'plan.results', 'research.lock')), { timeout: 40_000 })
      .toBe(true);
    const { code, stderr } = await runCli(['research', file, '-q'], { env });
    expect(code).toBe(1);
    expect(stderr).toContain('is at work on these results');
    first.kill('SIGINT');
    expect(await ended).toEqual([130, null]);
  });

  it('says with the line what is wrong with a plan', async () => {
    const file = join(temporaryFolder(), 'plan.yaml');
    writeFileSync(file, plan.replace('rounds: 2', 'rounds: two'));
    const { code, stderr } = await runCli(['research', file, '--check'], { env });
    expect(code).toBe(2);
    expect(stderr).toContain(`${file}:4: rounds: `);
  });
});
