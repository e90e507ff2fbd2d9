/** Tasks in processes of their own: crashes, hangs, kills and other builds end in a result or a typed error. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { buildCommit, commitOf, removeBuilds, resolveRef } from '#dist/eval/research/build.js';
import { LocalRunner } from '#dist/eval/tasks/local-runner.js';
import { CHILD_PATH, type RunTask } from '#dist/eval/tasks/task.js';
import { temporaryFolder } from '../support/folder.js';

const MODEL = fileURLToPath(new URL('../../models/tldr-UD_Q3_K_XL.gguf', import.meta.url));
const runner = new LocalRunner();
afterAll(() => runner.close());

const TASK: RunTask = {
  kind: 'run',
  request: { options: { model: MODEL, memory: '60M', readers: 2 }, promptTokens: 4, decodeTokens: 4 },
  timeoutSeconds: 60,
};

/** A build whose tasks do what the script says, with `answer` and `task` at hand. */
function buildWith(script: string): string {
  const root = temporaryFolder();
  const file = join(root, CHILD_PATH);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(join(root, 'package.json'), '{"type":"module"}');
  writeFileSync(
    file,
    `process.on('disconnect', () => process.exit());
     const answer = (value) => process.send({ ok: true, value, notices: ['said'] }, () => process.exit());
     process.once('message', (task) => { ${script} });\n`,
  );
  return root;
}

const isRunning = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

async function until(holds: () => boolean): Promise<void> {
  for (let tries = 0; !holds() && tries < 1000; tries++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  expect(holds()).toBe(true);
}

describe('the local runner', () => {
  it('measures a real run in another process', async () => {
    const { value } = await runner.run(TASK);
    expect(value.decode).toMatchObject({ tokens: 4 });
    expect(value.tokenMillis).toHaveLength(4);
    expect(value.drawn).not.toBe('');
  });

  it('hands typed errors through', async () => {
    const { request } = TASK;
    const task = { ...TASK, request: { ...request, options: { ...request.options, memory: '1M' } } };
    await expect(runner.run(task)).rejects.toMatchObject({ code: 'PLAN_REFUSED', hint: expect.any(String) });
  });

  it('gives the environment and another build what they need', async () => {
    const build = buildWith('answer({ seen: process.env.SEEN, model: task.request.options.model })');
    const result = await runner.run({ ...TASK, build, environment: { SEEN: 'yes' } });
    expect(result).toEqual({ ok: true, value: { seen: 'yes', model: MODEL }, notices: ['said'] });
    await expect(runner.run({ ...TASK, build: temporaryFolder() })).rejects.toMatchObject({
      code: 'RUN_FAILED',
      message: expect.stringContaining('not built'),
    });
  });

  it.each([
    ['a crash', 'process.kill(process.pid, "SIGSEGV")', /ended with SIGSEGV and no result/],
    [
      'an exit',
      'console.error("out of luck"); process.exit(3)',
      /ended with code 3 and no result: out of luck/,
    ],
    ['a hang', 'setInterval(() => {}, 1000)', /took more than 1 s and was ended/],
  ])('makes %s a typed error', async (_, script, message) => {
    await expect(runner.run({ ...TASK, build: buildWith(script), timeoutSeconds: 1 })).rejects.toMatchObject({
      code: 'RUN_FAILED',
      message: expect.stringMatching(message),
    });
  });

  it('ends the process of a task that is aborted, and takes the next one', async () => {
    const build = buildWith(
      `import('node:fs').then((fs) => fs.writeFileSync(process.env.PID_FILE, String(process.pid)));
       setInterval(() => {}, 1000)`,
    );
    const file = join(temporaryFolder(), 'pid');
    const abort = new AbortController();
    const running = runner.run({ ...TASK, build, environment: { PID_FILE: file } }, { signal: abort.signal });
    const ended = expect(running).rejects.toMatchObject({ code: 'ABORTED' });
    await until(() => existsSync(file) && readFileSync(file, 'utf8') !== '');
    abort.abort();
    await ended;
    await until(() => !isRunning(Number(readFileSync(file, 'utf8'))));
    expect(await runner.run({ ...TASK, build: buildWith('answer(1)') })).toMatchObject({ value: 1 });
  });
});

function repository(): string {
  const folder = temporaryFolder();
  const git = (...args: string[]): void => {
    execFileSync('git', ['-C', folder, '-c', 'user.name=a', '-c', 'user.email=a@b', ...args], {
      stdio: 'ignore',
    });
  };
  git('init', '-b', 'main');
  writeFileSync(join(folder, 'speed'), '1');
  git('add', '.');
  git('commit', '-m', 'first');
  git('tag', 'first');
  writeFileSync(join(folder, 'speed'), '2');
  git('commit', '-am', 'second');
  return folder;
}

describe('a build of a git ref', () => {
  const options = (folder: string, commands: readonly string[]) => ({
    repository: folder,
    builds: join(folder, 'builds'),
    commands,
    timeoutSeconds: 30,
  });

  it('is made once, in a worktree that goes at the end', async () => {
    const folder = repository();
    const commit = await resolveRef(folder, 'first');
    const commands = ['cat speed >> built', 'echo done'];
    const build = await buildCommit(commit, options(folder, commands));
    expect(await buildCommit(commit, options(folder, commands))).toBe(build);
    expect(readFileSync(join(build, 'built'), 'utf8')).toBe('1');
    expect(readFileSync(join(folder, 'speed'), 'utf8')).toBe('2');
    await removeBuilds(folder, join(folder, 'builds'), (sentence) => expect.fail(sentence));
    expect(existsSync(build)).toBe(false);
    expect(
      execFileSync('git', ['-C', folder, 'worktree', 'list'], { encoding: 'utf8' }).trim().split('\n'),
    ).toHaveLength(1);
  });

  it('is made anew when it was cut off, and fails with the last words', async () => {
    const folder = repository();
    const commit = await resolveRef(folder, 'main');
    await expect(
      buildCommit(commit, options(folder, ['touch half', 'echo no compiler; exit 7'])),
    ).rejects.toMatchObject({
      code: 'RUN_FAILED',
      message: expect.stringMatching(/ends with code 7 .*: no compiler$/),
    });
    const build = await buildCommit(commit, options(folder, ['touch whole']));
    expect(readdirSync(build)).toEqual(expect.arrayContaining(['whole']));
    expect(readdirSync(build)).not.toContain('half');
    await expect(
      buildCommit(await resolveRef(folder, 'first'), { ...options(folder, ['sleep 60']), timeoutSeconds: 1 }),
    ).rejects.toMatchObject({ message: expect.stringContaining('takes more than 1 s') });
  });

  it('is refused for what is no commit', async () => {
    const folder = repository();
    await expect(resolveRef(folder, 'nowhere')).rejects.toMatchObject({ code: 'RUN_FAILED' });
    await expect(resolveRef(folder, '--all')).rejects.toMatchObject({ code: 'RUN_FAILED' });
    expect(await commitOf(folder)).toMatch(/^[0-9a-f]{40}$/);
    writeFileSync(join(folder, 'speed'), '3');
    expect(await commitOf(folder)).toMatch(/-dirty$/);
    expect(await commitOf(temporaryFolder())).toBeNull();
  });
});
