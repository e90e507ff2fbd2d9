/**
 * Tasks on this machine, one at a time: two measurements at once would measure each other.
 *
 * A piscina thread supervises each task's process, so that the caller's thread stays free for Ctrl-C and the terminal, and
 * waiting tasks wait in the pool's queue.
 */
import { Piscina } from 'piscina';
import { fromWire, MoestreamError } from '../../errors.ts';
import type { Task, TaskResult, TaskRunner } from './task.ts';
import type { WorkerAnswer } from './worker.ts';

const EXTENSION = import.meta.url.endsWith('.ts') ? '.ts' : '.js';

export class LocalRunner implements TaskRunner {
  private readonly pool = new Piscina<Task, WorkerAnswer>({
    filename: new URL(`./worker${EXTENSION}`, import.meta.url).href,
    minThreads: 1,
    maxThreads: 1,
    idleTimeout: Number.POSITIVE_INFINITY,
    atomics: 'disabled',
  });

  async run<T extends Task>(
    task: T,
    options: { readonly signal?: AbortSignal } = {},
  ): Promise<TaskResult<T['kind']>> {
    const { signal } = options;
    let answer: WorkerAnswer;
    try {
      answer = await this.pool.run(task, signal === undefined ? {} : { signal });
    } catch (cause) {
      if (signal?.aborted === true) throw new MoestreamError('ABORTED', 'the caller ended it', { cause });
      throw new MoestreamError('RUN_FAILED', `a measured run could not be supervised: ${String(cause)}`, {
        cause,
      });
    }
    if (!answer.ok) throw fromWire(answer.error);
    return answer as TaskResult<T['kind']>;
  }

  async close(): Promise<void> {
    await this.pool.destroy();
  }
}
