/**
 * What a thread of the local runner does with a task: starts the child process that does it, waits within the task's time,
 * and turns every way to end into a result or a typed error.
 *
 * To abort, the caller sends a message. Terminating this thread would not do: the child would live on, unsupervised.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { MessagePort } from 'node:worker_threads';
import { fromWire, MoestreamError, toWire, type WireError } from '../../errors.ts';
import { CHILD_PATH, type Task, type TaskAnswer } from './task.ts';

/** Errors as plain data: a MoestreamError would lose its class between threads. */
export type WorkerAnswer =
  | { readonly ok: true; readonly value: unknown; readonly notices: readonly string[] }
  | { readonly ok: false; readonly error: WireError };

const EXTENSION = import.meta.url.endsWith('.ts') ? '.ts' : '.js';
/** The last words of a process that died; more is noise. */
const STDERR_MAX = 2000;

function childFile(build: string | undefined): string {
  if (build === undefined) return fileURLToPath(new URL(`./child${EXTENSION}`, import.meta.url));
  const file = join(build, CHILD_PATH);
  if (existsSync(file)) return file;
  throw new MoestreamError(
    'RUN_FAILED',
    `${build} has no ${CHILD_PATH}: it is not built, or too old to be measured`,
  );
}

/** What the pool hands over. Any message on the port aborts the task. */
export interface WorkerTask {
  readonly task: Task;
  readonly abort: MessagePort;
}

export default async function work({ task, abort }: WorkerTask): Promise<WorkerAnswer> {
  try {
    return await answerOf(task, abort);
  } catch (error) {
    return { ok: false, error: toWire(error) };
  } finally {
    abort.close();
  }
}

async function answerOf(task: Task, abort: MessagePort): Promise<WorkerAnswer> {
  const child = fork(childFile(task.build), {
    env: { ...process.env, ...task.environment },
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  });
  const timer = setTimeout(() => child.kill('SIGKILL'), task.timeoutSeconds * 1000);
  try {
    const answer = await messageOf(child, task, abort);
    if (!answer.ok) throw fromWire({ ...answer.error, hint: answer.error.hint });
    return answer;
  } finally {
    clearTimeout(timer);
    child.kill('SIGKILL');
  }
}

function messageOf(
  child: ChildProcess,
  { timeoutSeconds, ...task }: Task,
  abort: MessagePort,
): Promise<TaskAnswer> {
  const began = performance.now();
  let words = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    words = (words + text).slice(-STDERR_MAX);
  });
  return new Promise((resolve, reject) => {
    abort.once('message', () => {
      child.kill('SIGKILL');
      reject(new MoestreamError('ABORTED', 'the caller ended it'));
    });
    child.once('message', (answer) => resolve(answer as TaskAnswer));
    child.once('error', (cause) => {
      reject(
        new MoestreamError('RUN_FAILED', `a measured run could not be started: ${cause.message}`, { cause }),
      );
    });
    child.once('close', (code, signal) => {
      const late = performance.now() - began >= timeoutSeconds * 1000;
      const how = late
        ? `took more than ${timeoutSeconds} s and was ended`
        : `ended with ${signal ?? `code ${code}`} and no result`;
      const last = words.trim().split('\n').at(-1) ?? '';
      reject(new MoestreamError('RUN_FAILED', `a measured run ${how}${last === '' ? '' : `: ${last}`}`));
    });
    child.send({ ...task, timeoutSeconds }, (error) => {
      // Its end says why; this only keeps an unsent message from being an unhandled error.
      if (error !== null) words += error.message;
    });
  });
}
