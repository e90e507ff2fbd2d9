/**
 * A unit of measuring as plain data, and whoever can do it.
 *
 * Sweeps, tuning and research know only this interface. Here there is one runner, of this machine (local-runner.ts); a
 * task holds everything that it needs, so one behind a queue, on other machines, can follow without a change to them.
 */
import type { MoestreamError } from '../../errors.ts';
import type { RunMeasurement, RunRequest } from '../measure-run.ts';
import type { PerplexityMeasurement, PerplexityRequest } from '../perplexity.ts';

/** In what the work is done: this build or another, and with which environment. */
export interface TaskSurroundings {
  /** The root folder of another build of moestream. Default: the one that is running. */
  readonly build?: string;
  /** Added to the environment. */
  readonly environment?: Readonly<Record<string, string>>;
  /** The task fails when it takes longer. */
  readonly timeoutSeconds: number;
}

export interface RunTask extends TaskSurroundings {
  readonly kind: 'run';
  readonly request: RunRequest;
}

export interface PerplexityTask extends TaskSurroundings {
  readonly kind: 'perplexity';
  readonly request: PerplexityRequest;
}

export type Task = RunTask | PerplexityTask;

interface Values {
  readonly run: RunMeasurement;
  readonly perplexity: PerplexityMeasurement;
}

export interface TaskResult<Kind extends Task['kind']> {
  readonly value: Values[Kind];
  /** What the engine said, once each. */
  readonly notices: readonly string[];
}

export interface TaskRunner {
  /** Does one task. Throws the task's MoestreamError, RUN_FAILED when it ended without a word, ABORTED by the signal. */
  run<T extends Task>(task: T, options?: { readonly signal?: AbortSignal }): Promise<TaskResult<T['kind']>>;
  /** Ends whatever still runs. */
  close(): Promise<void>;
}

/** What a child process answers with. */
export type TaskAnswer =
  | { readonly ok: true; readonly value: unknown; readonly notices: readonly string[] }
  | { readonly ok: false; readonly error: Pick<MoestreamError, 'code' | 'message' | 'hint'> };

/** The file that a build does its tasks with, from its root. */
export const CHILD_PATH = 'dist/eval/tasks/child.js';
