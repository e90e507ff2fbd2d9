/**
 * The control block: the few words by which the pipeline is stopped and watched.
 *
 * STOP has two levels. RUN ends the current generation; SHUTDOWN ends the threads. Both are raised by the main thread
 * only, followed by an interrupt of every doorbell, and looked at by every stage before each wait and between layers, so
 * that Ctrl-C takes effect within one layer. A stage that fails throws, and its promise rejects: there is no error word
 * to forget to look at.
 *
 * HEARTBEATS: each stage counts up whenever it makes progress. Only the main thread's supervisor reads them.
 */
import { allocateWords } from './memory.ts';

const STOP_RUN = 0;
const STOP_SHUTDOWN = 1;
const HEARTBEATS = 16;
/** Heartbeats are a cache line apart: each has its own writer. */
const HEARTBEAT_STRIDE = 16;

export const STAGES = ['predict', 'compute', 'sample'] as const;
export type Stage = (typeof STAGES)[number];

export class ControlBlock {
  readonly words: Int32Array<SharedArrayBuffer>;

  constructor(words?: Int32Array<SharedArrayBuffer>) {
    this.words = words ?? allocateWords(HEARTBEATS + STAGES.length * HEARTBEAT_STRIDE);
  }

  /** True when the current generation shall end, for either reason. */
  get stopping(): boolean {
    return Atomics.load(this.words, STOP_RUN) !== 0 || Atomics.load(this.words, STOP_SHUTDOWN) !== 0;
  }

  get shuttingDown(): boolean {
    return Atomics.load(this.words, STOP_SHUTDOWN) !== 0;
  }

  /** Main thread only. */
  setRunStopped(stopped: boolean): void {
    Atomics.store(this.words, STOP_RUN, stopped ? 1 : 0);
  }

  /** Main thread only. */
  shutDown(): void {
    Atomics.store(this.words, STOP_SHUTDOWN, 1);
  }

  beat(stage: Stage): void {
    const at = this.heartbeatAt(stage);
    Atomics.store(this.words, at, (this.words[at]! + 1) | 0);
  }

  heartbeat(stage: Stage): number {
    return Atomics.load(this.words, this.heartbeatAt(stage));
  }

  private heartbeatAt(stage: Stage): number {
    return HEARTBEATS + STAGES.indexOf(stage) * HEARTBEAT_STRIDE;
  }
}
