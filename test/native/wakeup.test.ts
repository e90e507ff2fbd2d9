/** Reader threads ask to be let in as soon as they are woken; the kernel says whether it has heard. */
import { readFileSync } from 'node:fs';
import { release } from 'node:os';
import { Worker } from 'node:worker_threads';
import { expect, it } from 'vitest';

const SHORTEST_SLICE_NANOS = 100_000;
const [major, minor] = release().split('.').map(Number);
const hasSlices = process.platform === 'linux' && (major! > 6 || (major === 6 && minor! >= 12));

/** The kernel's record of a thread, where it is built to show it. */
function kernelShows(): boolean {
  try {
    return /se\.slice/.test(readFileSync('/proc/self/sched', 'utf8'));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** In a thread of its own, because it stays as it is. */
const SCRIPT = `
  const { parentPort, workerData } = require('node:worker_threads');
  const asked = require(workerData.addon).preferPromptWakeup();
  const record = workerData.shows ? require('node:fs').readFileSync('/proc/thread-self/sched', 'utf8') : '';
  parentPort.postMessage({ asked, slice: Number(/se\\.slice\\s*:\\s*(\\d+)/.exec(record)?.[1]) });
`;

it('a thread that asks for it gets the shortest slice there is', async (context) => {
  const shows = kernelShows();
  const addon = new URL('../../build/Release/io.node', import.meta.url).pathname;
  const worker = new Worker(SCRIPT, { eval: true, workerData: { addon, shows } });
  const { asked, slice } = await new Promise<{ asked: boolean; slice: number }>((resolve, reject) => {
    worker.once('message', resolve).once('error', reject);
  });
  await worker.terminate();
  if (!hasSlices) {
    expect(asked).toBe(false);
    return;
  }
  if (!asked)
    context.skip('this kernel refuses: another scheduling policy is set, or a filter of system calls');
  if (!shows) context.skip('this kernel does not show /proc/self/sched');
  expect(slice).toBe(SHORTEST_SLICE_NANOS);
});
