/** Collecting: bounded, one run at a time, and what is not kept is counted. */
import { describe, expect, it } from 'vitest';
import { TraceRecorder } from '#dist/engine/trace-recorder.js';
import { TRACE, Tracer } from '#dist/pipeline/trace.js';

const write = (tracer: Tracer, count: number): void => {
  for (let index = 0; index < count; index++) tracer.mark(TRACE.text, 0, index, 0, 0);
};

describe('the recorder', () => {
  it('stops keeping where it is full, and goes on emptying', () => {
    const recorder = new TraceRecorder(100);
    const tracer = new Tracer(recorder.follow('sample', 'sample'));
    write(tracer, 60);
    const end = recorder.begin();
    write(tracer, 4000);
    end();
    const { threads, notKept } = recorder.recorded;
    const sample = threads.find(({ role }) => role === 'sample')!;
    expect([sample.log.count, sample.dropped, notKept]).toEqual([100, 0, 3960]);
    expect(sample.log.a(99)).toBe(39);
  });

  it('forgets the run before, with what it had lost', () => {
    const recorder = new TraceRecorder();
    const tracer = new Tracer(recorder.follow('sample', 'sample'));
    const first = recorder.begin();
    write(tracer, 5000);
    first();
    expect(recorder.recorded.threads[1]).toMatchObject({ dropped: 5000 - 4096 });
    const second = recorder.begin();
    write(tracer, 7);
    second();
    const { threads, notKept } = recorder.recorded;
    expect([threads[1]!.log.count, threads[1]!.dropped, notKept]).toEqual([7, 0, 0]);
  });
});
