/**
 * Tasks on this machine, one at a time: two measurements at once would measure each other.
 *
 * A piscina thread supervises each task's process, so that the caller's thread stays free for Ctrl-C and the terminal, and
 * waiting tasks wait in the pool's queue.
 */
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import { Piscina } from 'piscina';
import { fromWire, MoestreamError } from '../../errors.ts';
import type { Task, TaskResult, TaskRunner } from './task.ts';
import type { WorkerAnswer, WorkerTask } from './worker.ts';

const EXTENSION = import.meta.url.endsWith('.ts') ? '.ts' : '.js';

export class LocalRunner implements TaskRunner {
  private readonly pool = new Piscina<WorkerTask, WorkerAnswer>({
    filename: new URL(`./worker${EXTENSION}`, import.meta.url).href,
    minThreads: 1,
    maxThreads: 1,
    idleTimeout: Number.POSITIVE_INFINITY,
    // A thread must hear of an abort while it waits.
    atomics: 'disabled',
  });
  private readonly running = new Map<MessagePort, Promise<unknown>>();

  async run<T extends Task>(
    task: T,
    options: { readonly signal?: AbortSignal } = {},
  ): Promise<TaskResult<T['kind']>> {
    const { signal } = options;
    const { port1, port2 } = new MessageChannel();
    const abort = (): void => port1.postMessage('abort');
    if (signal?.aborted === true) abort();
    signal?.addEventListener('abort', abort, { once: true });
    const work = this.pool.run({ task, abort: port2 }, { transferList: [port2] });
    this.running.set(port1, work);
    let answer: WorkerAnswer;
    try {
      answer = await work;
    } catch (cause) {
      const message = `a measured run could not be supervised: ${String(cause)}`;
      throw new MoestreamError('RUN_FAILED', message, { cause });
    } finally {
      this.running.delete(port1);
      signal?.removeEventListener('abort', abort);
      port1.close();
    }
    if (!answer.ok) throw fromWire(answer.error);
    return answer as TaskResult<T['kind']>;
  }

  async close(): Promise<void> {
    for (const port of this.running.keys()) port.postMessage('abort');
    await Promise.allSettled(this.running.values());
    await this.pool.destroy();
  }
}
