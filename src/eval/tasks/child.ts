/**
 * One task in a process of its own: the task comes as a message, the answer goes back as one, and the process ends.
 *
 * Why a process: a setting that crashes the engine, leaks or hangs must cost one run, not the night; environment variables
 * reach native code only from the start; and another build's add-ons cannot be loaded beside ours. When the parent dies,
 * by kill -9 too, its end of the channel closes and the child ends.
 */
import { toWire } from '../../errors.ts';
import { measureRun } from '../measure-run.ts';
import { measurePerplexity } from '../perplexity.ts';
import type { Task, TaskAnswer } from './task.ts';

async function answerOf(task: Task): Promise<TaskAnswer> {
  const notices: string[] = [];
  const listeners = { notice: (sentence: string) => notices.push(sentence) };
  try {
    const value =
      task.kind === 'run'
        ? await measureRun(task.request, listeners)
        : await measurePerplexity(task.request, listeners);
    return { ok: true, value, notices: [...new Set(notices)] };
  } catch (error) {
    return { ok: false, error: toWire(error) };
  }
}

process.on('disconnect', () => process.exit());
// Ctrl-C reaches the whole group: the parent decides what becomes of the run.
process.on('SIGINT', () => {});
process.once('message', (task: Task) => {
  void answerOf(task).then((answer) => process.send?.(answer, () => process.exit()));
});
