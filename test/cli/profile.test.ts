/** `moestream profile` as a user calls it. */
import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { findChromium, openPage } from '../support/chromium.js';
import { type CliRun, ENDLESS, runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const PROMPT = 'How do I use tar?';
const SMALL = ['--temp', '0', '-n', '12', '--memory', '24M', '--context', '128'];
const root = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));

const profile = (...more: string[]): Promise<CliRun> =>
  runCli(['profile', BUILT_IN_MODEL, PROMPT, ...SMALL, ...more]);

describe('profile', () => {
  const folder = temporaryFolder;
  let run: CliRun;
  let trace: string;
  let page: string;

  beforeAll(async () => {
    const into = folder();
    [trace, page] = [join(into, 'trace.json'), join(into, 'page.html')];
    run = await profile('--trace', trace, '--html', page, '--predict', 'temporal');
  });

  it('prints a table that fits 60 columns and has no escapes', () => {
    expect(run.stderr).toContain('trace in');
    expect(run.code).toBe(0);
    for (const word of [
      'compute',
      'disk',
      'hand-offs',
      'wait-read',
      'layer',
      'p99',
      'GB/s',
      'demand queue',
    ]) {
      expect(run.stdout).toContain(word);
    }
    expect(run.stdout).not.toContain('\u001b');
    for (const line of run.stdout.split('\n')) expect(line.length, line).toBeLessThanOrEqual(60);
  });

  it('writes a trace with a row for every thread', () => {
    const { traceEvents } = JSON.parse(readFileSync(trace, 'utf8')) as {
      traceEvents: { ph: string; name: string; args: { name: string } }[];
    };
    const rows = traceEvents.filter(({ name }) => name === 'thread_name').map(({ args }) => args.name);
    for (const name of ['main', 'compute', 'predict', 'sample']) expect(rows).toContain(name);
    expect(rows.some((name) => /^(io_uring|reader-1)/.test(name))).toBe(true);
    const counters = traceEvents.filter(({ ph }) => ph === 'C').map(({ name }) => name);
    expect(counters).toContain('reads under way');
  });

  const chromium = findChromium();
  it.skipIf(chromium === undefined)('writes a page that a browser opens without an error', () => {
    const opened = openPage(chromium!, page);
    expect(opened.console).toEqual([]);
    expect(opened.dom.match(/<canvas/g)!.length).toBeGreaterThan(7);
    expect(opened.dom).toContain('What token time is bound by');
    expect(opened.dom).toContain('A typical token');
  });

  it('gives every figure as JSON, and the text', async () => {
    const { stdout, code } = await profile('--json', '-q');
    expect(code).toBe(0);
    const found = JSON.parse(stdout);
    const plain = await runCli(['generate', '-m', BUILT_IN_MODEL, PROMPT, ...SMALL, '--json']);
    expect(found.text).toBe(JSON.parse(plain.stdout).text);
    expect(found.result.stats.answerTokens).toBe(12);
    for (const phase of [found.prompt, found.answer]) {
      const parts = Object.values<number>(phase.partMillis).reduce((sum, each) => sum + each, 0);
      expect(parts + phase.unaccountedMillis).toBeCloseTo(phase.totalMillis, 6);
    }
  });

  it('takes the prompt from a pipe, the model from --model, and generates 64 tokens at most', async () => {
    const options = ['--model', BUILT_IN_MODEL, '--memory', '24M', '--json', '-q', '--temp', '0'];
    const { stdout } = await runCli(['profile', ...options], { input: PROMPT });
    const { stats } = JSON.parse(stdout).result;
    expect(stats.answerTokens).toBeGreaterThan(1);
    expect(stats.answerTokens).toBeLessThanOrEqual(64);
  });

  it('refuses two models and none', async () => {
    const two = await runCli(['profile', '--model', BUILT_IN_MODEL, BUILT_IN_MODEL, PROMPT]);
    expect([two.code, two.stderr]).toEqual([2, expect.stringContaining('named twice')]);
    const none = await runCli(['profile']);
    expect([none.code, none.stderr]).toEqual([2, expect.stringContaining('no model given')]);
  });

  it.skipIf(process.platform !== 'linux')('says when the disk is full', async () => {
    for (const what of ['--trace', '--html']) {
      const { code, stderr, stdout } = await profile(what, '/dev/full');
      expect([code, stderr]).toEqual([1, expect.stringContaining('DISK_FULL')]);
      expect(stdout).toContain('hand-offs');
    }
  });

  it('finds out before it generates that a file cannot be written', async () => {
    const { code, stderr } = await profile('--trace', join(folder(), 'none', 'trace.json'));
    expect([code, stderr]).toEqual([1, expect.stringContaining('WRITE_FAILED')]);
    expect(stderr).not.toContain('the prompt is done');
  });

  it('ends at Ctrl-C with nothing written', async () => {
    const out = join(folder(), 'trace.json');
    const child = spawn(process.execPath, [
      ...[root('dist/cli/main.js'), 'profile', BUILT_IN_MODEL, '-n', '4000', ...ENDLESS],
      ...['-p', PROMPT, '--memory', '24M', '--trace', out],
    ]);
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
      if (stderr.includes('the prompt is done')) child.kill('SIGINT');
    });
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect([code, stderr]).toEqual([130, expect.stringContaining('the prompt is done')]);
    expect(existsSync(out)).toBe(false);
  });
});

describe('profile --flamegraph', () => {
  it('leaves a CPU profile and a flame graph of every thread', async () => {
    const folder = join(temporaryFolder(), 'flames');
    const { code, stderr } = await profile(
      '--flamegraph',
      folder,
      '--io-engine',
      'threads',
      '--readers',
      '2',
      '--predict',
      'temporal',
    );
    expect([code, stderr]).toEqual([0, expect.stringContaining('CPU profiles')]);
    const names = ['compute', 'predict', 'reader-1', 'reader-2', 'sample'];
    expect(readdirSync(folder).sort()).toEqual(
      names.flatMap((name) => [`${name}.cpuprofile`, `${name}.html`]),
    );
    const compute = JSON.parse(readFileSync(join(folder, 'compute.cpuprofile'), 'utf8'));
    const functions = compute.nodes.map(
      (node: { callFrame: { functionName: string } }) => node.callFrame.functionName,
    );
    expect(functions).toContain('runLayer');
    expect(readFileSync(join(folder, 'compute.html'), 'utf8')).toContain('runLayer');
    const again = await profile('--flamegraph', folder);
    expect([again.code, again.stderr]).toEqual([2, expect.stringContaining('holds profiles already')]);
  });

  it('says what to install when 0x is not there, and leaves the CPU profiles', async () => {
    const copy = temporaryFolder();
    for (const name of ['dist', 'package.json']) cpSync(root(name), join(copy, name), { recursive: true });
    symlinkSync(root('build'), join(copy, 'build'));
    mkdirSync(join(copy, 'node_modules'));
    for (const name of readdirSync(root('node_modules'))) {
      if (name !== '0x') symlinkSync(join(root('node_modules'), name), join(copy, 'node_modules', name));
    }
    const folder = join(copy, 'flames');
    const args = ['profile', BUILT_IN_MODEL, PROMPT, ...SMALL, '--flamegraph', folder];
    const child = spawn(process.execPath, [join(copy, 'dist/cli/main.js'), ...args]);
    let [stdout, stderr] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect([code, stderr]).toEqual([2, expect.stringContaining('npm install 0x')]);
    expect(stdout).toContain('hand-offs');
    expect(readdirSync(folder)).toContain('compute.cpuprofile');
    expect(stderr).toContain(folder);
  });
});
