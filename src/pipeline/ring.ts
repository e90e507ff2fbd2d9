/**
 * A ring of fixed-size descriptors between exactly one producer and one consumer.
 *
 * Slots are 32-bit words in one SharedArrayBuffer. HEAD is written by the consumer only, TAIL by the producer only, each
 * on its own cache line; both count up for ever and wrap at 2^32, so `tail - head` is the number of filled slots. Each
 * side keeps the last value it saw of the other's counter and rereads it only when that one says full or empty, which
 * is what makes it 5 to 8 million descriptors a second on Node 20.
 *
 * Use: producer `reserve`, write the slot's words, `commit`; consumer `peek`, read the words, `release`. A slot index is
 * an index into `words`. Blocking forms return STOPPED or TIMED_OUT instead of an index.
 */
import { invariant } from '../errors.ts';
import type { ControlBlock } from './control.ts';
import { DOORBELL_WORDS, Doorbell } from './doorbell.ts';
import { allocateWords } from './memory.ts';

export const EMPTY = -1;
export const STOPPED = -2;
export const TIMED_OUT = -3;

const LINE_WORDS = 16;
const HEAD = 0;
const TAIL = HEAD + LINE_WORDS;
const FILLED_BELL = TAIL + LINE_WORDS;
const SPACE_BELL = FILLED_BELL + DOORBELL_WORDS;
const HEADER_WORDS = SPACE_BELL + DOORBELL_WORDS;

/** What a worker needs to attach to a ring. */
export interface RingHandle {
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly slots: number;
  readonly slotWords: number;
}

export class SpscRing {
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly slots: number;
  readonly slotWords: number;
  private readonly mask: number;
  private seenHead: number;
  private seenTail: number;
  private readonly filledBell: Doorbell;
  private readonly spaceBell: Doorbell;

  static create(slots: number, slotWords: number): SpscRing {
    invariant(slots >= 1 && (slots & (slots - 1)) === 0, `ring of ${slots} slots: not a power of two`);
    invariant(slotWords >= 1, `ring slot of ${slotWords} words`);
    return new SpscRing({ words: allocateWords(HEADER_WORDS + slots * slotWords), slots, slotWords });
  }

  constructor(handle: RingHandle) {
    invariant(
      handle.words.length === HEADER_WORDS + handle.slots * handle.slotWords,
      'ring handle of another shape',
    );
    this.words = handle.words;
    this.slots = handle.slots;
    this.slotWords = handle.slotWords;
    this.mask = handle.slots - 1;
    this.seenHead = Atomics.load(this.words, HEAD);
    this.seenTail = Atomics.load(this.words, TAIL);
    this.filledBell = new Doorbell(this.words, FILLED_BELL);
    this.spaceBell = new Doorbell(this.words, SPACE_BELL);
  }

  handle(): RingHandle {
    return { words: this.words, slots: this.slots, slotWords: this.slotWords };
  }

  /** Producer: the slot to fill, or EMPTY when every slot is taken. */
  tryReserve(): number {
    const tail = this.words[TAIL]!;
    if (((tail - this.seenHead) | 0) >= this.slots) {
      this.seenHead = Atomics.load(this.words, HEAD);
      if (((tail - this.seenHead) | 0) >= this.slots) return EMPTY;
    }
    return HEADER_WORDS + (tail & this.mask) * this.slotWords;
  }

  /** Producer: hands the reserved slot over. */
  commit(): void {
    Atomics.store(this.words, TAIL, (this.words[TAIL]! + 1) | 0);
    this.filledBell.ring();
  }

  /** Producer, after a successful reserve: how many free slots, at most `most`, lie one behind the other from it. */
  contiguous(most: number): number {
    const tail = this.words[TAIL]!;
    this.seenHead = Atomics.load(this.words, HEAD);
    const free = this.slots - ((tail - this.seenHead) | 0);
    return Math.min(most, free, this.slots - (tail & this.mask));
  }

  /** Consumer: the oldest filled slot, or EMPTY. */
  tryPeek(): number {
    const head = this.words[HEAD]!;
    if (head === this.seenTail) {
      this.seenTail = Atomics.load(this.words, TAIL);
      if (head === this.seenTail) return EMPTY;
    }
    return HEADER_WORDS + (head & this.mask) * this.slotWords;
  }

  /** Consumer: gives the oldest slot back. */
  release(): void {
    Atomics.store(this.words, HEAD, (this.words[HEAD]! + 1) | 0);
    this.spaceBell.ring();
  }

  /** Which of the `slots` slots an index is: for buffers that go beside the ring, one per slot. */
  slotNumber(slot: number): number {
    return (slot - HEADER_WORDS) / this.slotWords;
  }

  /** Filled slots, seen from anywhere: for statistics. */
  get filled(): number {
    return (Atomics.load(this.words, TAIL) - Atomics.load(this.words, HEAD)) | 0;
  }

  /** Producer: waits for a free slot. Returns its index, STOPPED or TIMED_OUT. */
  reserve(control: ControlBlock, timeoutMillis: number): number {
    const slot = this.tryReserve();
    return slot !== EMPTY ? slot : this.await(this.spaceBell, control, timeoutMillis, true);
  }

  /** Consumer: waits for a filled slot. Returns its index, STOPPED or TIMED_OUT. */
  peek(control: ControlBlock, timeoutMillis: number): number {
    const slot = this.tryPeek();
    return slot !== EMPTY ? slot : this.await(this.filledBell, control, timeoutMillis, false);
  }

  /**
   * Consumer on a thread with an event loop: sleeps at most once. Returns a slot, or EMPTY when the time was over or the
   * ring was interrupted; the caller looks around and comes again.
   */
  peekAsync(timeoutMillis: number): Promise<number> {
    return this.awaitAsync(this.filledBell, timeoutMillis, false);
  }

  /** Producer on a thread with an event loop; as `peekAsync`. */
  reserveAsync(timeoutMillis: number): Promise<number> {
    return this.awaitAsync(this.spaceBell, timeoutMillis, true);
  }

  /**
   * Empties the ring between two runs, whatever an interrupted run left in it. Only while neither side is at work, and
   * the other side must attach anew: it remembers counters of its own.
   */
  reset(): void {
    Atomics.store(this.words, HEAD, 0);
    Atomics.store(this.words, TAIL, 0);
    this.seenHead = 0;
    this.seenTail = 0;
  }

  /** Wakes both sides: a stop word has changed. */
  interrupt(): void {
    this.filledBell.interrupt();
    this.spaceBell.interrupt();
  }

  private async awaitAsync(bell: Doorbell, timeoutMillis: number, producer: boolean): Promise<number> {
    const epoch = bell.enter();
    try {
      const slot = producer ? this.tryReserve() : this.tryPeek();
      if (slot !== EMPTY) return slot;
      await bell.sleepAsync(epoch, timeoutMillis);
      return producer ? this.tryReserve() : this.tryPeek();
    } finally {
      bell.leave();
    }
  }

  private await(bell: Doorbell, control: ControlBlock, timeoutMillis: number, producer: boolean): number {
    const deadlineMillis = performance.now() + timeoutMillis;
    for (;;) {
      const epoch = bell.enter();
      const slot = producer ? this.tryReserve() : this.tryPeek();
      const leftMillis = slot === EMPTY ? deadlineMillis - performance.now() : 0;
      if (slot === EMPTY && leftMillis > 0 && !control.stopping) bell.sleep(epoch, leftMillis);
      bell.leave();
      if (slot !== EMPTY) return slot;
      if (control.stopping) return STOPPED;
      if (leftMillis <= 0) return TIMED_OUT;
    }
  }
}
