/** The trace fabric: what one thread writes another takes, in order, on one clock; a full ring loses events and says so. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import {
  createTraceRing,
  NO_TRACER,
  sharedMillis,
  TRACE,
  TRACE_KINDS,
  TraceReader,
  Tracer,
} from '#dist/pipeline/trace.js';
import { TraceLog } from '#dist/pipeline/trace-log.js';

const workers: Worker[] = [];
afterEach(() => Promise.all(workers.splice(0).map((worker) => worker.terminate())));

function peer(handle: ReturnType<typeof createTraceRing>): Worker {
  const worker = new Worker(new URL('../support/trace-peer.mjs', import.meta.url), { workerData: handle });
  workers.push(worker);
  return worker;
}

async function tell(worker: Worker, count: number): Promise<void> {
  worker.postMessage(count);
  await once(worker, 'message');
}

describe('a trace ring', () => {
  it('names every kind once', () => {
    expect(new Set(Object.values(TRACE)).size).toBe(TRACE_KINDS.length);
    expect(Object.values(TRACE).toSorted((a, b) => a - b)).toEqual(TRACE_KINDS.map((_, index) => index));
  });

  it("carries another thread's events on the shared clock", async () => {
    const epoch = sharedMillis();
    const handle = createTraceRing(8, epoch);
    const worker = peer(handle);
    const log = new TraceLog();
    const reader = new TraceReader(handle);
    for (let round = 0; round < 3; round++) {
      const before = sharedMillis() - epoch;
      await tell(worker, 5);
      const after = sharedMillis() - epoch;
      expect(log.takeFrom(reader, 100)).toBe(5);
      for (let index = 5 * round; index < 5 * round + 5; index++) {
        const value = index - 5 * round;
        expect([log.kind(index), log.layer(index)]).toEqual([TRACE.text, 3]);
        expect([log.a(index), log.b(index) + 0, log.c(index)]).toEqual([value, 0 - value, 7]);
        // Two readings of one clock in two threads: a microsecond or so apart, and never a timeOrigin.
        expect(log.beginMillis(index)).toBeGreaterThan(before - 1);
        expect(log.endMillis(index)).toBeLessThan(after + 1);
      }
    }
    expect(reader.dropped).toBe(0);
  });

  it('drops and counts what does not fit, without waiting', async () => {
    const handle = createTraceRing(8, sharedMillis());
    const worker = peer(handle);
    await tell(worker, 20);
    const reader = new TraceReader(handle);
    const log = new TraceLog();
    expect(log.takeFrom(reader, 100)).toBe(8);
    expect(reader.dropped).toBe(12);
    expect(log.a(7)).toBe(7);
    await tell(worker, 3);
    expect(log.takeFrom(reader, 2)).toBe(2);
    expect(reader.discard()).toBe(1);
    expect(log.takeFrom(reader, 100)).toBe(0);
    expect(reader.dropped).toBe(12);
  });

  it('keeps laps without gaps', () => {
    const handle = createTraceRing(16, sharedMillis());
    const tracer = new Tracer(handle);
    tracer.beginLaps();
    tracer.lap(TRACE.mix, 0, 0, 0, 0);
    tracer.mark(TRACE.issue, 0, 0, 0, 0);
    tracer.lap(TRACE.shared, 0, 0, 0, 0);
    tracer.markLap(TRACE.stepEnd, 0, 0, 0, 0);
    const log = new TraceLog();
    log.takeFrom(new TraceReader(handle), 10);
    expect(log.beginMillis(2)).toBe(log.endMillis(0));
    expect(log.beginMillis(3)).toBe(log.endMillis(2));
    expect(log.beginMillis(1)).toBeGreaterThanOrEqual(log.endMillis(0));
  });

  it('is nothing when it is off', () => {
    expect(NO_TRACER.on).toBe(false);
    for (let index = 0; index < 100; index++) NO_TRACER.lap(TRACE.mix, 0, 0, 0, 0);
    const fresh = createTraceRing(2, 0);
    expect(new TraceLog().takeFrom(new TraceReader(fresh), 10)).toBe(0);
  });

  it('logs more than a piece holds', () => {
    const handle = createTraceRing(4096, sharedMillis());
    const tracer = new Tracer(handle);
    const reader = new TraceReader(handle);
    const log = new TraceLog();
    let written = 0;
    while (log.count < 70_000) {
      for (let index = 0; index < 3000; index++) tracer.mark(TRACE.text, 0, written++, 0, 0);
      log.takeFrom(reader, 1_000_000);
    }
    for (let index = 0; index < log.count; index += 777) expect(log.a(index)).toBe(index);
    expect(log.a(log.count - 1)).toBe(log.count - 1);
  });
});
