/**
 * The trace fabric: every thread writes what it did into a ring of its own, and the main thread takes it out.
 *
 * Invariant: tracing changes nothing but time. A writer never waits and never allocates: with a full ring the event is
 * dropped and counted. With tracing off every hook is one branch on a field that never changes, which the compiler folds
 * into the caller; bench/trace-overhead.ts holds what both cost.
 *
 * Two kinds of hooks. A `lap` ends where the next lap of the thread begins: laps cut a thread's time without gaps, so
 * that the parts of a token's time sum to the token's time by construction. A `span` has a beginning of its own, for
 * things that go on side by side (reads), and a `mark` no length at all.
 *
 * Times are milliseconds of the thread's own `performance.now`; what to add to come to the clock that all threads share
 * stands in the ring's header. An event is eight words: begin and end as float64, kind and layer, three values.
 */
import { invariant } from '../errors.ts';

export const TRACE_KINDS = [
  /** Compute: a run begins [prompt tokens] and ends; a step (chunk or token) ends [position, rows, 1 in the answer]. */
  'run-begin',
  'run-end',
  'step-end',
  /** Compute: waiting for ids of the prompt, for the sampled id, for room for logits. */
  'wait-prompt',
  'wait-token',
  'wait-logits',
  /** Compute, per layer: norm, mixer and router; shared expert; one routed expert [expert]; sum of the experts. */
  'mix',
  'shared',
  'expert',
  'combine',
  /** Compute: the head's product. */
  'logits',
  /** Compute, per layer: finding what is here and asking for what is not [wanted, hits so far, late hits so far]. */
  'admit',
  /** Compute, per layer: taking note of arrivals, admitting more; taking hints. */
  'schedule',
  'hints',
  /** Compute, per layer: nothing to do until a read ends; no room in the fetch queue. */
  'wait-read',
  'wait-queue',
  /** Compute, a mark: an expert's read was asked for [slot, expert, lane]. */
  'issue',
  /** Reader: one read [ticket, bytes or -errno, file]. */
  'read',
  /** Sample: waiting for logits; choosing a token [token]; sending text and asking for the next row. */
  'wait-row',
  'sample',
  'deliver',
  /** Predict: waiting for a route; making hints [given so far]. */
  'wait-route',
  'predict',
  /** Main: a text message has come [token or -1]; a counter was looked at [which, value]. */
  'text',
  'counter',
] as const;

export type TraceKind = (typeof TRACE_KINDS)[number];

const code = (kind: TraceKind): number => TRACE_KINDS.indexOf(kind);

/** The numbers of the kinds, for hooks: a name would be looked up for every event. */
export const TRACE = {
  runBegin: code('run-begin'),
  runEnd: code('run-end'),
  stepEnd: code('step-end'),
  waitPrompt: code('wait-prompt'),
  waitToken: code('wait-token'),
  waitLogits: code('wait-logits'),
  mix: code('mix'),
  shared: code('shared'),
  expert: code('expert'),
  combine: code('combine'),
  logits: code('logits'),
  admit: code('admit'),
  schedule: code('schedule'),
  hints: code('hints'),
  waitRead: code('wait-read'),
  waitQueue: code('wait-queue'),
  issue: code('issue'),
  read: code('read'),
  waitRow: code('wait-row'),
  sample: code('sample'),
  deliver: code('deliver'),
  waitRoute: code('wait-route'),
  predict: code('predict'),
  text: code('text'),
  counter: code('counter'),
} as const;

export const EVENT_WORDS = 8;
export const EVENT_BEGIN = 0;
export const EVENT_END = 1;
/** Kind in the low byte, layer above it. */
export const EVENT_CODE = 4;
export const EVENT_A = 5;
export const EVENT_B = 6;
export const EVENT_C = 7;
export const LAYER_SHIFT = 8;
export const KIND_MASK = (1 << LAYER_SHIFT) - 1;

/** Header: head and tail on cache lines of their own; dropped and the clock belong to the writer, like the tail. */
const LINE_WORDS = 16;
const HEAD = 0;
const TAIL = LINE_WORDS;
const DROPPED = TAIL + 1;
const ATTACHED = TAIL + 2;
/** As float64. */
const CLOCK = (TAIL + 4) / 2;
const HEADER_WORDS = 2 * LINE_WORDS;

const CLOCK_READINGS = 7;

export interface TraceHandle {
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly slots: number;
  /** Where the shared clock stands at zero, in milliseconds of the system's monotonic one. */
  readonly epochMillis: number;
}

/** How a thread is watched, if at all. */
export interface Observation {
  readonly trace: TraceHandle | undefined;
  /** Where the thread leaves a profile of its CPU time when it ends. */
  readonly cpuProfile: string | undefined;
}

/** Milliseconds of the clock that all threads share. */
export function sharedMillis(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

export function createTraceRing(slots: number, epochMillis: number): TraceHandle {
  invariant(slots >= 2 && (slots & (slots - 1)) === 0, `trace ring of ${slots} slots: not a power of two`);
  const words = new Int32Array(new SharedArrayBuffer((HEADER_WORDS + slots * EVENT_WORDS) * 4));
  return { words, slots, epochMillis };
}

/** What to add to this thread's `performance.now` to come to the shared clock: the reading with the least between. */
function clockOffset(epochMillis: number): number {
  let offset = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let reading = 0; reading < CLOCK_READINGS; reading++) {
    const before = performance.now();
    const shared = sharedMillis();
    const after = performance.now();
    if (after - before >= least) continue;
    least = after - before;
    offset = shared - epochMillis - (before + after) / 2;
  }
  return offset;
}

/** The writing side: one per thread. Without a handle it is off, for good. */
export class Tracer {
  readonly on: boolean;
  private readonly words: Int32Array;
  private readonly times: Float64Array;
  private readonly slots: number;
  private lapMillis = 0;

  constructor(handle: TraceHandle | undefined) {
    this.on = handle !== undefined;
    const ring = handle ?? createTraceRing(2, 0);
    this.words = ring.words;
    this.times = new Float64Array(ring.words.buffer);
    this.slots = ring.slots;
    if (handle === undefined) return;
    this.times[CLOCK] = clockOffset(handle.epochMillis);
    Atomics.store(this.words, ATTACHED, 1);
  }

  /** The next lap begins now, and not where the last one ended. */
  beginLaps(): void {
    if (this.on) this.lapMillis = performance.now();
  }

  /** What was done since the last lap ended. */
  lap(kind: number, layer: number, a: number, b: number, c: number): void {
    if (!this.on) return;
    const nowMillis = performance.now();
    this.write(kind, layer, this.lapMillis, nowMillis, a, b, c);
    this.lapMillis = nowMillis;
  }

  /** What was done since `beganMillis`, whatever else went on. */
  span(kind: number, beganMillis: number, a: number, b: number, c: number): void {
    if (this.on) this.write(kind, 0, beganMillis, performance.now(), a, b, c);
  }

  /** Something that happened now. */
  mark(kind: number, layer: number, a: number, b: number, c: number): void {
    if (!this.on) return;
    const nowMillis = performance.now();
    this.write(kind, layer, nowMillis, nowMillis, a, b, c);
  }

  /** Something that happened where the last lap ended. */
  markLap(kind: number, layer: number, a: number, b: number, c: number): void {
    if (this.on) this.write(kind, layer, this.lapMillis, this.lapMillis, a, b, c);
  }

  private write(
    kind: number,
    layer: number,
    beginMillis: number,
    endMillis: number,
    a: number,
    b: number,
    c: number,
  ): void {
    const { words, times } = this;
    const tail = words[TAIL]!;
    if (((tail - Atomics.load(words, HEAD)) | 0) >= this.slots) {
      Atomics.store(words, DROPPED, (words[DROPPED]! + 1) | 0);
      return;
    }
    const at = HEADER_WORDS + (tail & (this.slots - 1)) * EVENT_WORDS;
    times[(at >> 1) + EVENT_BEGIN] = beginMillis;
    times[(at >> 1) + EVENT_END] = endMillis;
    words[at + EVENT_CODE] = kind | (layer << LAYER_SHIFT);
    words[at + EVENT_A] = a;
    words[at + EVENT_B] = b;
    words[at + EVENT_C] = c;
    Atomics.store(words, TAIL, (tail + 1) | 0);
  }
}

/** For threads that nobody watches. */
export const NO_TRACER = new Tracer(undefined);

/** The reading side, for the thread that collects. */
export class TraceReader {
  private readonly words: Int32Array;
  private readonly times: Float64Array;
  private readonly slots: number;

  constructor(handle: TraceHandle) {
    this.words = handle.words;
    this.times = new Float64Array(handle.words.buffer);
    this.slots = handle.slots;
  }

  /** Events that were written to a full ring. */
  get dropped(): number {
    return Atomics.load(this.words, DROPPED) >>> 0;
  }

  /** Copies at most `most` events to `into` from slot `at` on, with times on the shared clock; returns how many. */
  take(into: Int32Array, intoTimes: Float64Array, at: number, most: number): number {
    if (Atomics.load(this.words, ATTACHED) === 0) return 0;
    const head = this.words[HEAD]!;
    const count = Math.min(most, (Atomics.load(this.words, TAIL) - head) | 0);
    const clock = this.times[CLOCK]!;
    for (let index = 0; index < count; index++) {
      const from = HEADER_WORDS + ((head + index) & (this.slots - 1)) * EVENT_WORDS;
      const to = (at + index) * EVENT_WORDS;
      for (let word = EVENT_CODE; word < EVENT_WORDS; word++) into[to + word] = this.words[from + word]!;
      intoTimes[(to >> 1) + EVENT_BEGIN] = this.times[(from >> 1) + EVENT_BEGIN]! + clock;
      intoTimes[(to >> 1) + EVENT_END] = this.times[(from >> 1) + EVENT_END]! + clock;
    }
    Atomics.store(this.words, HEAD, (head + count) | 0);
    return count;
  }

  /** Empties the ring; returns how many events went. */
  discard(): number {
    const tail = Atomics.load(this.words, TAIL);
    const count = (tail - this.words[HEAD]!) | 0;
    Atomics.store(this.words, HEAD, tail);
    return count;
  }
}
