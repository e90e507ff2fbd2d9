/**
 * An eventcount: how a thread sleeps until another one has something for it, without losing a wake-up.
 *
 * The sleeper raises SLEEPERS, reads EPOCH, looks once more whether there is work, and waits for EPOCH to change. The
 * ringer publishes its work first and touches EPOCH only when SLEEPERS is raised, so ringing an awake thread costs one
 * load (9 ns) instead of a system call (5 us). Interrupting a wait is the same ring: a stop needs no polling.
 *
 * Two words, on a cache line of their own: [EPOCH, SLEEPERS].
 */
export const DOORBELL_WORDS = 16;

const EPOCH = 0;
const SLEEPERS = 1;

export class Doorbell {
  private readonly words: Int32Array;
  private readonly epochAt: number;
  private readonly sleepersAt: number;

  constructor(words: Int32Array, firstWord: number) {
    this.words = words;
    this.epochAt = firstWord + EPOCH;
    this.sleepersAt = firstWord + SLEEPERS;
  }

  /** Wakes one sleeper, if any. Call after the work is visible. */
  ring(): void {
    if (Atomics.load(this.words, this.sleepersAt) !== 0) this.wake(1);
  }

  /** Wakes every sleeper, whether or not there is work: the stop words have changed. */
  interrupt(): void {
    this.wake(Number.POSITIVE_INFINITY);
  }

  /**
   * Announces a sleeper and returns the epoch to sleep on. The caller must look for work after this and before `sleep`,
   * and call `leave` in every case.
   */
  enter(): number {
    Atomics.add(this.words, this.sleepersAt, 1);
    return Atomics.load(this.words, this.epochAt);
  }

  /** Sleeps until the epoch has moved on or the time is over. */
  sleep(epoch: number, timeoutMillis: number): void {
    Atomics.wait(this.words, this.epochAt, epoch, timeoutMillis);
  }

  /** The same for a thread that must keep its event loop: the main thread. */
  async sleepAsync(epoch: number, timeoutMillis: number): Promise<void> {
    const result = Atomics.waitAsync(this.words, this.epochAt, epoch, timeoutMillis);
    if (result.async) await result.value;
  }

  leave(): void {
    Atomics.sub(this.words, this.sleepersAt, 1);
  }

  private wake(count: number): void {
    Atomics.add(this.words, this.epochAt, 1);
    Atomics.notify(this.words, this.epochAt, count);
  }
}
