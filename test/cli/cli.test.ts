/** The command line, as a user calls it. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ENDLESS, runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL, fixture, readFloats, readJson, relativeRms } from '../support/golden.js';

/** Exact, because greedy text at 3 bits turns at the smallest rounding. */
const model = ['-m', BUILT_IN_MODEL, '--readers', '4', '--precision', 'exact'];

describe('generate', () => {
  it('prints the answer on stdout and one summary line on stderr', async () => {
    const run = await runCli(['generate', ...model, '--temp', '0', '--io', 'direct', 'tar']);
    expect(run.code).toBe(0);
    expect(run.stdout).toMatch(/^# tar\n\nArchiving utility\.[\s\S]*\n$/);
    expect(run.stderr).toMatch(
      /^\[prompt 12 tokens, [\d.]+ tok\/s \| answer \d+ tokens, [\d.]+ tok\/s \| read [\d.]+ MB \| experts \d+ % hit( \| ahead .*)?\]\n$/,
    );
  });

  it('takes the prompt from the argument, --prompt, --file or stdin, and gives the same answer', async () => {
    const file = join(temporaryFolder(), 'prompt.txt');
    writeFileSync(file, 'tar');
    const rest = [...model, '--temp', '0', '-n', '8', '-q'];
    const runs = await Promise.all([
      runCli(['generate', ...rest, 'tar']),
      runCli(['run', ...rest, '-p', 'tar']),
      runCli(['generate', ...rest, '-f', file]),
      runCli(['generate', ...rest], { input: 'tar' }),
      runCli(['generate', ...rest, '-f', '-'], { input: 'tar' }),
    ]);
    for (const run of runs) expect([run.code, run.stdout, run.stderr]).toEqual([0, runs[0]!.stdout, '']);
  });

  it('--json prints one object with text and figures', async () => {
    const run = await runCli([
      'generate',
      ...model,
      '--temp',
      '0',
      '-n',
      '8',
      '--seed',
      '5',
      '--json',
      '-q',
      'tar',
    ]);
    const result = JSON.parse(run.stdout) as Record<string, unknown>;
    expect(result).toMatchObject({
      finishReason: 'length',
      seed: 5,
      stats: { promptTokens: 12, answerTokens: 8 },
    });
    expect(result.text).toMatch(/^# tar/);
  });

  it('--raw continues a text, --system comes first, the seed decides', async () => {
    const raw = await runCli([
      'generate',
      ...model,
      '--temp',
      '0',
      '-n',
      '6',
      '--raw',
      '-q',
      '<|im_start|>user\ntar<|im_end|>\n<|im_start|>assistant\n',
    ]);
    const chat = await runCli(['generate', ...model, '--temp', '0', '-n', '6', '-q', 'tar']);
    expect(raw.stdout).toBe(chat.stdout);
    const system = await runCli([
      'generate',
      ...model,
      '--temp',
      '0',
      '-n',
      '6',
      '--json',
      '-q',
      '--system',
      'Be brief.',
      'tar',
    ]);
    expect(JSON.parse(system.stdout)).not.toMatchObject({ stats: { promptTokens: 12 } });
    const seeded = (seed: string) =>
      runCli(['generate', ...model, '-s', seed, '--temp', '1.5', '-n', '20', '-q', 'tar']);
    const [one, again, other] = await Promise.all([seeded('1'), seeded('1'), seeded('2')]);
    expect(one.stdout).toBe(again.stdout);
    expect(one.stdout).not.toBe(other.stdout);
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s ends it with %i within a token', async (signal, code) => {
    let killed = false;
    const run = await runCli(
      ['generate', ...model, ...ENDLESS, '-s', '1', '-n', '3000', 'Tell me everything'],
      {
        onStdout: (text, kill) => {
          if (killed || text.length < 10) return;
          killed = true;
          kill(signal);
        },
      },
    );
    expect(run.code).toBe(code);
    expect(run.stderr).not.toMatch(/Error|ABORTED/);
    expect(run.stdout.endsWith('\n')).toBe(true);
  });

  it('says what a smaller number of experts means', async () => {
    const run = await runCli(['generate', ...model, '--experts-per-token', '2', '-n', '2', 'tar']);
    expect(run.code).toBe(0);
    expect(run.stderr).toMatch(/using 2 experts per token; the model was trained with 4/);
  });
});

describe('logits', () => {
  it('writes every position in float32', async () => {
    const folder = fixture('golden/nano-Q8_0');
    const { ids } = readJson<{ ids: number[] }>(`${folder}/golden.json`);
    const out = join(temporaryFolder(), 'logits.f32');
    const run = await runCli([
      'logits',
      '-m',
      `${folder}/model.gguf`,
      '--ids',
      ids.join(','),
      '--out',
      out,
      '--precision',
      'exact',
    ]);
    expect(run.code).toBe(0);
    expect(relativeRms(readFloats(out), readFloats(`${folder}/ref.f32`))).toBeLessThan(1e-4);
    const idsFile = join(temporaryFolder(), 'ids.txt');
    writeFileSync(idsFile, ids.slice(0, 3).join('\n'));
    await runCli(['logits', '-m', `${folder}/model.gguf`, '--ids-file', idsFile, '--out', out, '-q']);
    expect(readFileSync(out).length).toBe(3 * 320 * 4);
  });

  it('leaves no file behind when it fails', async () => {
    const out = join(temporaryFolder(), 'logits.f32');
    const run = await runCli(['logits', ...model, '--ids', '1,2,99999', '--out', out]);
    expect(run.code).toBe(2);
    expect(run.stderr).toMatch(/token id 99999 is not in the vocabulary of 8192/);
    expect([existsSync(out), existsSync(`${out}.part`)]).toEqual([false, false]);
  });
});

describe('tokenize and inspect', () => {
  it('tokenize --ids gives what logits --ids takes', async () => {
    const run = await runCli(['tokenize', '--ids', '-m', BUILT_IN_MODEL, '<|im_start|>user\ntar']);
    expect([run.code, run.stdout]).toEqual([0, '8190,1764,198,83,280\n']);
    const table = await runCli(['tokenize', '-m', BUILT_IN_MODEL], { input: 'tar' });
    expect(table.stdout).toBe(' 83  "t"\n280  "ar"\n');
  });

  it('inspect tells what stays and what streams', async () => {
    const run = await runCli(['inspect', BUILT_IN_MODEL]);
    expect(run.stdout).toMatch(/architecture\s+qwen35moe/);
    expect(run.stdout).toMatch(/IQ3_XXS \/ IQ3_XXS \/ IQ4_XS/);
    const json = JSON.parse((await runCli(['inspect', BUILT_IN_MODEL, '--json'])).stdout) as Record<
      string,
      unknown
    >;
    expect(json).toMatchObject({
      architecture: 'qwen35moe',
      layers: 8,
      experts: 32,
      expertsPerToken: 4,
      vocabulary: 8192,
    });
  });
});

describe('exit codes', () => {
  const folder = temporaryFolder();
  const text = join(folder, 'text.gguf');
  writeFileSync(text, 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n');
  mkdirSync(join(folder, 'dir.gguf'));

  it.each([
    [0, ['--help']],
    [0, ['--version']],
    [0, ['generate', '--help']],
    [2, ['nonsense']],
    [2, ['generate']],
    [2, ['generate', ...model, '--nonsense', 'tar']],
    [2, ['generate', ...model, '-n', 'many', 'tar']],
    [2, ['generate', ...model, '--split', '0', 'tar']],
    [2, ['generate', ...model, '--memory', '8 potatoes', 'tar']],
    [2, ['generate', ...model, '--temp', '-1', 'tar']],
    [2, ['generate', ...model, '-p', 'tar', 'tar']],
    [3, ['generate', '-m', join(folder, 'missing.gguf'), 'tar']],
    [3, ['generate', '-m', join(folder, 'dir.gguf'), 'tar']],
    [3, ['generate', '-m', text, 'tar']],
    [3, ['inspect', text]],
    [4, ['generate', ...model, '--memory', '1M', 'tar']],
  ])('%i for %j', async (code, args) => {
    const run = await runCli(args);
    expect(run.code).toBe(code);
    if (code === 0) return;
    expect(run.stdout).toBe('');
    expect(run.stderr.trim()).not.toBe('');
    expect(run.stderr).not.toMatch(/\n\s+at /);
  });

  it('a refused plan names the smallest budget that works, and that works', async () => {
    const run = await runCli(['generate', ...model, '--memory', '1M', 'tar']);
    const smallest = /--memory (\d+)/.exec(run.stderr)![1]!;
    const again = await runCli(['generate', ...model, '--memory', smallest, '--temp', '0', '-n', '5', 'tar']);
    expect(again.code).toBe(0);
    expect(again.stdout).toMatch(/^# tar/);
  });

  it('a reader that goes away ends it quietly', async () => {
    const { spawn } = await import('node:child_process');
    const command = `"${process.execPath}" dist/cli/main.js generate -m "${BUILT_IN_MODEL}" --readers 2 -n 500 "tar" | head -c 5; echo "code \${PIPESTATUS[0]}"`;
    const child = spawn('bash', ['-c', command], { stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let err = '';
    child.stdout.setEncoding('utf8').on('data', (piece: string) => {
      out += piece;
    });
    child.stderr.setEncoding('utf8').on('data', (piece: string) => {
      err += piece;
    });
    await new Promise((resolve) => child.on('close', resolve));
    expect(out).toMatch(/code 141\n$/);
    expect(err).not.toMatch(/EPIPE|Error/);
  });
});
