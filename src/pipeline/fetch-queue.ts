/**
 * The queue between the one thread that wants bytes and the readers that fetch them.
 *
 * Two lanes, demand and prefetch: a reader takes from the demand lane as long as there is anything in it. Each lane is a
 * bounded ring with one producer and many consumers (Vyukov's sequence numbers: slot i is filled when its sequence word
 * is position + 1, and free for the next round when it is position + slots). Consumers claim a slot by moving TAKEN
 * with compare-and-swap and copy the descriptor out before they free it, so a slow read never holds a slot.
 *
 * Permits bound the reads under way (the window): ten experts asked for at once all arrive at the end, at 11 ms; with one
 * or two under way they arrive one after another, every 1.2 ms, for 4 to 12 % of the bandwidth, and compute can follow.
 * Requests are taken in the order they were queued, which is the router's.
 *
 * Prefetch fills idle disk time only: a reader takes from the prefetch lane when no demand is queued and none is under way,
 * and at most two prefetch chunks are under way at once. They are half as long as demand chunks (PREFETCH_FINENESS), so a
 * demand that comes meets at most one chunk's worth of reading before it; two, because one at a time leaves the disk idle
 * between them.
 *
 * A reader that waits inside native code (io_uring) cannot be woken by Atomics.notify; it raises NATIVE_SLEEPER, and
 * whoever queues a request then signals its wake descriptor.
 *
 * The producer is whoever issues reads: the main thread while it loads the dense weights, the compute worker afterwards,
 * never both at once.
 */
import { invariant } from '../errors.ts';
import type { ControlBlock } from './control.ts';
import { DOORBELL_WORDS, Doorbell } from './doorbell.ts';
import { allocateWords } from './memory.ts';
import { NO_CLAIM } from './tickets.ts';

export const LANE_DEMAND = 0;
export const LANE_PREFETCH = 1;

/** Prefetch chunks under way at once, and into how many more chunks than a demand a prefetch is cut. */
export const PREFETCHES_UNDER_WAY_MAX = 2;
export const PREFETCH_FINENESS = 2;

/** One read: where from, where to, and whose. Filled by the producer, copied out by a reader. */
export interface ReadRequest {
  ticket: number;
  /** Which chunk of the ticket; see tickets.ts. */
  claim: number;
  /** Index into the engine's list of open files. */
  file: number;
  offsetBytes: number;
  /** Whole pages; may reach past the end of the file. */
  byteLength: number;
  /** How many of them must arrive: all, or up to the end of the file. */
  requiredBytes: number;
  segment: number;
  intoBytes: number;
  /** Which lane it was taken from: set by whoever takes it. */
  lane: number;
}

/** What a producer fills. */
export type QueuedRead = Omit<ReadRequest, 'lane'>;

export const emptyRequest = (): ReadRequest => ({
  ticket: 0,
  claim: NO_CLAIM,
  file: 0,
  offsetBytes: 0,
  byteLength: 0,
  requiredBytes: 0,
  segment: 0,
  intoBytes: 0,
  lane: LANE_DEMAND,
});

const SEQUENCE = 0;
const TICKET = 1;
const FILE = 2;
const OFFSET_LOW = 3;
const OFFSET_HIGH = 4;
const LENGTH = 5;
const REQUIRED = 6;
const SEGMENT = 7;
const INTO = 8;
const CLAIM = 9;
const SLOT_WORDS = 16;

const LINE_WORDS = 16;
const PUSHED = 0;
const TAKEN = PUSHED + LINE_WORDS;
const LANE_HEADER_WORDS = TAKEN + LINE_WORDS;
const WORD = 2 ** 32;

class Lane {
  private readonly words: Int32Array;
  private readonly base: number;
  private readonly mask: number;

  constructor(words: Int32Array, base: number, slots: number) {
    this.words = words;
    this.base = base;
    this.mask = slots - 1;
  }

  static words(slots: number): number {
    return LANE_HEADER_WORDS + slots * SLOT_WORDS;
  }

  initialise(): void {
    for (let slot = 0; slot <= this.mask; slot++)
      Atomics.store(this.words, this.slotAt(slot) + SEQUENCE, slot);
  }

  tryPush(request: QueuedRead): boolean {
    const words = this.words;
    const position = words[this.base + PUSHED]!;
    const at = this.slotAt(position);
    if (Atomics.load(words, at + SEQUENCE) !== position) return false;
    words[at + TICKET] = request.ticket;
    words[at + CLAIM] = request.claim;
    words[at + FILE] = request.file;
    words[at + OFFSET_LOW] = (request.offsetBytes % WORD) | 0;
    words[at + OFFSET_HIGH] = Math.floor(request.offsetBytes / WORD);
    words[at + LENGTH] = request.byteLength | 0;
    words[at + REQUIRED] = request.requiredBytes | 0;
    words[at + SEGMENT] = request.segment;
    words[at + INTO] = request.intoBytes | 0;
    Atomics.store(words, at + SEQUENCE, (position + 1) | 0);
    Atomics.store(words, this.base + PUSHED, (position + 1) | 0);
    return true;
  }

  tryPop(into: ReadRequest): boolean {
    const words = this.words;
    let position = Atomics.load(words, this.base + TAKEN);
    for (;;) {
      const at = this.slotAt(position);
      const lead = (Atomics.load(words, at + SEQUENCE) - (position + 1)) | 0;
      if (lead < 0) return false;
      const seen = lead > 0 ? Atomics.load(words, this.base + TAKEN) : this.claim(position);
      if (lead === 0 && seen === position) {
        this.copyOut(at, into);
        Atomics.store(words, at + SEQUENCE, (position + this.mask + 1) | 0);
        return true;
      }
      position = seen;
    }
  }

  get waiting(): number {
    return (Atomics.load(this.words, this.base + PUSHED) - Atomics.load(this.words, this.base + TAKEN)) | 0;
  }

  private claim(position: number): number {
    return Atomics.compareExchange(this.words, this.base + TAKEN, position, (position + 1) | 0);
  }

  private copyOut(at: number, into: ReadRequest): void {
    const words = this.words;
    into.ticket = words[at + TICKET]!;
    into.claim = words[at + CLAIM]!;
    into.file = words[at + FILE]!;
    into.offsetBytes = (words[at + OFFSET_LOW]! >>> 0) + words[at + OFFSET_HIGH]! * WORD;
    into.byteLength = words[at + LENGTH]! >>> 0;
    into.requiredBytes = words[at + REQUIRED]! >>> 0;
    into.segment = words[at + SEGMENT]!;
    into.intoBytes = words[at + INTO]! >>> 0;
  }

  private slotAt(position: number): number {
    return this.base + LANE_HEADER_WORDS + (position & this.mask) * SLOT_WORDS;
  }
}

export interface FetchQueueHandle {
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly slots: number;
  /** The wake descriptor of a reader that waits in native code, or -1. */
  readonly wakeFd: number;
}

const FILLED_BELL = 0;
const SPACE_BELL = FILLED_BELL + DOORBELL_WORDS;
const UNDER_WAY = SPACE_BELL + DOORBELL_WORDS;
const MOST_UNDER_WAY = UNDER_WAY + 1;
/** UNDER_WAY holds two counts, so that both change together: demand below, prefetch from this on. */
const ONE_PREFETCH = 2 ** 16;
const DEMANDS_MASK = ONE_PREFETCH - 1;
const NATIVE_SLEEPER = UNDER_WAY + LINE_WORDS;
const LANES = NATIVE_SLEEPER + LINE_WORDS;

/** A reader looks at the stop word this often, even if an interrupt were lost. */
const SLEEP_MILLIS = 1000;

export class FetchQueue {
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly slots: number;
  private readonly wakeFd: number;
  private readonly signal: (wakeFd: number) => void;
  private readonly lanes: readonly [Lane, Lane];
  private readonly filledBell: Doorbell;
  private readonly spaceBell: Doorbell;

  /**
   * `mostUnderWay` bounds the reads under way. `wakeFd` and `signal` wake a reader that waits in native code; without
   * one, nobody does.
   */
  static create(
    slots: number,
    mostUnderWay: number,
    wakeFd = -1,
    signal: (wakeFd: number) => void = () => {},
  ): FetchQueue {
    invariant(
      slots >= 2 && (slots & (slots - 1)) === 0,
      `queue of ${slots} slots: not a power of two above 1`,
    );
    invariant(mostUnderWay >= 1 && mostUnderWay < ONE_PREFETCH, `${mostUnderWay} reads under way`);
    const words = allocateWords(LANES + 2 * Lane.words(slots));
    words[MOST_UNDER_WAY] = mostUnderWay;
    const queue = new FetchQueue({ words, slots, wakeFd }, signal);
    for (const lane of queue.lanes) lane.initialise();
    return queue;
  }

  constructor(handle: FetchQueueHandle, signal: (wakeFd: number) => void = () => {}) {
    this.words = handle.words;
    this.slots = handle.slots;
    this.wakeFd = handle.wakeFd;
    this.signal = signal;
    this.filledBell = new Doorbell(this.words, FILLED_BELL);
    this.spaceBell = new Doorbell(this.words, SPACE_BELL);
    this.lanes = [
      new Lane(this.words, LANES, handle.slots),
      new Lane(this.words, LANES + Lane.words(handle.slots), handle.slots),
    ];
  }

  handle(): FetchQueueHandle {
    return { words: this.words, slots: this.slots, wakeFd: this.wakeFd };
  }

  /** Producer. False when the lane is full. */
  tryPush(lane: number, request: QueuedRead): boolean {
    if (!this.lanes[lane]!.tryPush(request)) return false;
    // No reader may take it now, and who ends the demand looks for it by itself. Ten hints are sixty chunks.
    if (lane === LANE_PREFETCH && this.underWay(LANE_DEMAND) > 0) return true;
    this.filledBell.ring();
    this.wakeNative();
    return true;
  }

  /** Producer: waits for room. False when the pipeline stops or the time is over. */
  push(lane: number, request: QueuedRead, control: ControlBlock, timeoutMillis: number): boolean {
    const deadlineMillis = performance.now() + timeoutMillis;
    while (!this.tryPush(lane, request)) {
      const epoch = this.spaceBell.enter();
      const pushed = this.tryPush(lane, request);
      const leftMillis = deadlineMillis - performance.now();
      if (!pushed && leftMillis > 0 && !control.stopping) this.spaceBell.sleep(epoch, leftMillis);
      this.spaceBell.leave();
      if (pushed) return true;
      if (leftMillis <= 0 || control.stopping) return false;
    }
    return true;
  }

  /**
   * Reader: the next request. A prefetch only while no demand is queued or under way. False when there is none, or as many
   * reads are under way as may be. Every request taken must be given back with `finish`.
   */
  tryPop(into: ReadRequest): boolean {
    return this.tryPopFrom(LANE_DEMAND, into) || this.tryPopFrom(LANE_PREFETCH, into);
  }

  /**
   * A permit is taken only when the lane has something, and a reader that loses the race for it finds that another has it
   * under way; that one looks again when it ends. So no reader goes to sleep over work that nobody will come for.
   */
  private tryPopFrom(lane: number, into: ReadRequest): boolean {
    if (this.waiting(lane) <= 0 || !this.takePermit(lane)) return false;
    if (this.lanes[lane]!.tryPop(into)) {
      into.lane = lane;
      this.spaceBell.ring();
      return true;
    }
    this.givePermit(lane);
    return false;
  }

  /** Reader: waits for a request. False only when the threads shall end. */
  pop(into: ReadRequest, control: ControlBlock): boolean {
    for (;;) {
      if (this.tryPop(into)) return true;
      const epoch = this.filledBell.enter();
      const found = this.tryPop(into);
      if (!found && !control.shuttingDown) this.filledBell.sleep(epoch, SLEEP_MILLIS);
      this.filledBell.leave();
      if (found) return true;
      if (control.shuttingDown) return false;
    }
  }

  /** Reader: a request has been dealt with. The one who calls this looks for the next by itself. */
  finish(request: ReadRequest): void {
    this.givePermit(request.lane);
  }

  /** Reader that is about to wait in native code: from now on it is signalled. Look for a request once more, then wait. */
  enterNative(): void {
    Atomics.store(this.words, NATIVE_SLEEPER, 1);
  }

  leaveNative(): void {
    Atomics.store(this.words, NATIVE_SLEEPER, 0);
  }

  /** Requests that no reader has taken yet. */
  waiting(lane: number): number {
    return this.lanes[lane]!.waiting;
  }

  get mostUnderWay(): number {
    return this.words[MOST_UNDER_WAY]!;
  }

  interrupt(): void {
    this.filledBell.interrupt();
    this.spaceBell.interrupt();
    this.wakeNative();
  }

  /** Reads that are under way from a lane, seen from anywhere. */
  underWay(lane: number): number {
    const counts = Atomics.load(this.words, UNDER_WAY);
    return lane === LANE_DEMAND ? counts & DEMANDS_MASK : Math.floor(counts / ONE_PREFETCH);
  }

  private takePermit(lane: number): boolean {
    const most = this.mostUnderWay;
    for (;;) {
      const seen = Atomics.load(this.words, UNDER_WAY);
      const demands = seen & DEMANDS_MASK;
      const prefetches = Math.floor(seen / ONE_PREFETCH);
      if (demands + prefetches >= most) return false;
      if (lane === LANE_PREFETCH && (demands > 0 || prefetches >= PREFETCHES_UNDER_WAY_MAX)) return false;
      const taken = seen + (lane === LANE_DEMAND ? 1 : ONE_PREFETCH);
      if (Atomics.compareExchange(this.words, UNDER_WAY, seen, taken) === seen) return true;
    }
  }

  private givePermit(lane: number): void {
    Atomics.sub(this.words, UNDER_WAY, lane === LANE_DEMAND ? 1 : ONE_PREFETCH);
  }

  private wakeNative(): void {
    if (Atomics.load(this.words, NATIVE_SLEEPER) === 0) return;
    if (Atomics.exchange(this.words, NATIVE_SLEEPER, 0) !== 0) this.signal(this.wakeFd);
  }
}
