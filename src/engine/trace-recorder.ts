/**
 * Collects the events of all threads on the main one, and looks at how full rings and queue are.
 *
 * Every few milliseconds of a run it empties the threads' rings into logs, which hold one run. Bounded: at EVENTS_MAX
 * events (128 MB) it keeps emptying and stops keeping, and says how many were left out. Rings are sized for a tenth of a
 * second of the busiest thread; what a late collector loses is counted by its writer.
 */

import {
  createTraceRing,
  sharedMillis,
  TRACE,
  type TraceHandle,
  TraceReader,
  Tracer,
} from '../pipeline/trace.ts';
import { type RecordedTrace, TraceLog, type TraceRole } from '../pipeline/trace-log.ts';

const EVENTS_MAX = 4 * 1024 ** 2;
const COLLECT_MILLIS = 5;

/** Compute writes about twenty events per layer and token. */
const RING_SLOTS: Readonly<Record<TraceRole, number>> = {
  main: 4096,
  compute: 65_536,
  predict: 16_384,
  sample: 4096,
  reader: 8192,
};

/** Something that is looked at while a run goes on. */
export interface Counter {
  readonly name: string;
  readonly most: number;
  readonly now: () => number;
}

interface Followed {
  readonly name: string;
  readonly role: TraceRole;
  readonly reader: TraceReader;
  log: TraceLog;
  /** What the reader had dropped when the log began. */
  droppedBefore: number;
}

export class TraceRecorder {
  /** What the main thread writes with. */
  readonly main: Tracer;
  private readonly eventsMax: number;
  private readonly epochMillis = sharedMillis();
  private counters: readonly Counter[] = [];
  private readonly followed: Followed[] = [];
  private kept = 0;
  private notKept = 0;
  private runs = 0;
  private timer: NodeJS.Timeout | undefined;

  constructor(eventsMax = EVENTS_MAX) {
    this.eventsMax = eventsMax;
    this.main = new Tracer(this.follow('main', 'main'));
  }

  /** Before the first run. */
  lookAt(counters: readonly Counter[]): void {
    this.counters = counters;
  }

  /** A ring for one more thread. */
  follow(name: string, role: TraceRole): TraceHandle {
    const handle = createTraceRing(RING_SLOTS[role], this.epochMillis);
    this.followed.push({
      name,
      role,
      reader: new TraceReader(handle),
      log: new TraceLog(),
      droppedBefore: 0,
    });
    return handle;
  }

  /** A run begins, and the one before is forgotten. Returns what to call when it has ended. */
  begin(): () => void {
    this.collect();
    if (this.runs++ > 0) this.forget();
    this.timer = setInterval(() => {
      this.look();
      this.collect();
    }, COLLECT_MILLIS);
    return () => {
      clearInterval(this.timer);
      this.collect();
    };
  }

  /** What has been recorded: the last run, or the one under way; with the first, how the model was loaded. */
  get recorded(): RecordedTrace {
    return {
      threads: this.followed.map(({ name, role, reader, log, droppedBefore }) => ({
        name,
        role,
        log,
        dropped: reader.dropped - droppedBefore,
      })),
      counters: this.counters.map(({ name, most }) => ({ name, most })),
      notKept: this.notKept,
    };
  }

  private forget(): void {
    for (const each of this.followed) {
      each.log = new TraceLog();
      each.droppedBefore = each.reader.dropped;
    }
    this.kept = 0;
    this.notKept = 0;
  }

  private look(): void {
    this.counters.forEach(({ now }, which) => {
      this.main.mark(TRACE.counter, 0, which, now(), 0);
    });
  }

  private collect(): void {
    for (const { reader, log } of this.followed) {
      this.kept += log.takeFrom(reader, this.eventsMax - this.kept);
      if (this.kept === this.eventsMax) this.notKept += reader.discard();
    }
  }
}
