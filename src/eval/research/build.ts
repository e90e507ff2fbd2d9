/**
 * Another state of the source, built to be measured: a git worktree of the plan's repository, and the plan's build commands.
 *
 * A build is used again as long as its folder says that it was finished; one that was cut off is made anew. Worktrees go
 * when the research is over.
 */
import { execFile, spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MoestreamError } from '../../errors.ts';

const run = promisify(execFile);
const GIT_SECONDS = 120;
const DONE_NAME = '.moestream-build-done';
const LOG_TAIL = 300;

async function git(folder: string, args: readonly string[]): Promise<string> {
  const { stdout } = await run('git', ['-C', folder, ...args], { timeout: GIT_SECONDS * 1000 });
  return stdout.trim();
}

function gitFailure(what: string, cause: unknown): MoestreamError {
  const words = String((cause as { stderr?: unknown }).stderr ?? cause).trim();
  return new MoestreamError('RUN_FAILED', `${what}: ${words.split('\n').at(-1) ?? words}`, { cause });
}

/** `3f2a9c1...`, with `-dirty` behind it when files have changed since; null outside of a repository. */
export async function commitOf(folder: string): Promise<string | null> {
  try {
    const commit = await git(folder, ['rev-parse', 'HEAD']);
    return (await git(folder, ['status', '--porcelain', '--untracked-files=no'])) === ''
      ? commit
      : `${commit}-dirty`;
  } catch {
    // No git, no repository or no commit yet: a result without a commit is still a result.
    return null;
  }
}

export interface BuildOptions {
  /** A folder inside the repository. */
  readonly repository: string;
  /** Where worktrees go. */
  readonly builds: string;
  readonly commands: readonly string[];
  readonly timeoutSeconds: number;
  readonly signal?: AbortSignal;
}

/** The commit that a ref names. Throws RUN_FAILED. */
export async function resolveRef(repository: string, ref: string): Promise<string> {
  try {
    return await git(repository, ['rev-parse', '--verify', '--quiet', '--end-of-options', `${ref}^{commit}`]);
  } catch (cause) {
    throw new MoestreamError('RUN_FAILED', `git knows no ${ref} in ${repository}`, { cause });
  }
}

/** The root folder of the built commit. Throws RUN_FAILED with the last words of what failed. */
export async function buildCommit(commit: string, options: BuildOptions): Promise<string> {
  const { repository, builds, commands } = options;
  const folder = join(builds, commit.slice(0, 16));
  if (existsSync(join(folder, DONE_NAME))) return folder;
  await removeWorktree(repository, folder);
  mkdirSync(builds, { recursive: true });
  try {
    await git(repository, ['worktree', 'add', '--detach', folder, commit]);
  } catch (cause) {
    throw gitFailure(`git makes no worktree of ${commit}`, cause);
  }
  const log = `${folder}.log`;
  writeFileSync(log, '');
  for (const command of commands) await shell(command, folder, log, options);
  writeFileSync(join(folder, DONE_NAME), '');
  return folder;
}

/** Runs one build command; it and all that it started end with the signal or the time. */
function shell(
  command: string,
  folder: string,
  log: string,
  { timeoutSeconds, signal }: BuildOptions,
): Promise<void> {
  const output = openSync(log, 'a');
  const child = spawn('sh', ['-c', command], {
    cwd: folder,
    stdio: ['ignore', output, output],
    detached: true,
  });
  closeSync(output);
  let late = false;
  const kill = (): void => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It has ended by itself.
    }
  };
  const timer = setTimeout(() => {
    late = true;
    kill();
  }, timeoutSeconds * 1000);
  signal?.addEventListener('abort', kill, { once: true });
  if (signal?.aborted === true) kill();
  return new Promise<void>((resolve, reject) => {
    child.once('error', (cause) => reject(gitFailure(`${command} does not start`, cause)));
    child.once('close', (code) => {
      if (signal?.aborted === true) reject(new MoestreamError('ABORTED', 'the caller ended the build'));
      else if (code === 0) resolve();
      else {
        const how = late ? `takes more than ${timeoutSeconds} s` : `ends with code ${code}`;
        const tail = readFileSync(log, 'utf8').trim().slice(-LOG_TAIL).split('\n').at(-1) ?? '';
        reject(new MoestreamError('RUN_FAILED', `${command} ${how} (${log}): ${tail}`));
      }
    });
  }).finally(() => {
    clearTimeout(timer);
    signal?.removeEventListener('abort', kill);
  });
}

async function removeWorktree(repository: string, folder: string): Promise<void> {
  if (!existsSync(folder)) return;
  try {
    await git(repository, ['worktree', 'remove', '--force', folder]);
  } catch {
    // Not a worktree any more, or never one whole: the folder goes, and git is told to look.
    rmSync(folder, { recursive: true, force: true });
    await git(repository, ['worktree', 'prune']);
  }
}

/** Removes every build. What cannot be removed is left, and said. */
export async function removeBuilds(
  repository: string,
  builds: string,
  notice: (sentence: string) => void,
): Promise<void> {
  if (!existsSync(builds)) return;
  for (const name of readdirSync(builds)) {
    try {
      if (name.endsWith('.log')) continue;
      await removeWorktree(repository, join(builds, name));
    } catch (error) {
      notice(`${join(builds, name)} stays: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
}
