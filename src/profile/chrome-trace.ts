/**
 * A recorded trace in Chrome's trace event format, as Perfetto and chrome://tracing open it.
 *
 * One row per thread, and counters. Slices of a row must nest, so reads that one thread has under way together get rows
 * beside each other. Written event by event from the logs, so memory stays small; bounded to EVENTS_MAX events (a file of
 * about 200 MB), the first of the run, and the file says how many were left out.
 *
 * Times are whole nanoseconds before they are written as microseconds: slices that touch in the log touch in the file.
 */
import { TRACE, TRACE_KINDS } from '../pipeline/trace.ts';
import type { RecordedTrace, TracedThread, TraceLog } from '../pipeline/trace-log.ts';
import { type ExpertRead, readsOf } from './reads.ts';

const EVENTS_MAX = 2_000_000;
const PROCESS = 1;
/** Rows of one thread's reads are numbered from its own row on. */
const ROWS_PER_THREAD = 1000;

type Json = string | number | boolean | { readonly [key: string]: Json };

const nanosOf = (millis: number): number => Math.round(millis * 1e6);

/** Nanoseconds as microseconds with three decimals, without a rounding in between. */
function micros(nanos: number): string {
  const whole = Math.trunc(nanos / 1000);
  return `${whole}.${String(Math.abs(nanos - whole * 1000)).padStart(3, '0')}`;
}

interface Slice {
  readonly name: string;
  readonly category: string;
  readonly row: number;
  readonly beginMillis: number;
  readonly endMillis: number;
  readonly args?: Json;
}

function slice({ name, category, row, beginMillis, endMillis, args }: Slice): string {
  const [begin, end] = [nanosOf(beginMillis), nanosOf(endMillis)];
  const extra = args === undefined ? '' : `,"args":${JSON.stringify(args)}`;
  return (
    `{"ph":"X","name":${JSON.stringify(name)},"cat":"${category}","pid":${PROCESS},"tid":${row},` +
    `"ts":${micros(begin)},"dur":${micros(Math.max(0, end - begin))}${extra}}`
  );
}

function instant(name: string, row: number, atMillis: number, args: Json): string {
  return (
    `{"ph":"i","s":"t","name":${JSON.stringify(name)},"pid":${PROCESS},"tid":${row},` +
    `"ts":${micros(nanosOf(atMillis))},"args":${JSON.stringify(args)}}`
  );
}

function counter(name: string, atMillis: number, value: number): string {
  return (
    `{"ph":"C","name":${JSON.stringify(name)},"pid":${PROCESS},"tid":0,` +
    `"ts":${micros(nanosOf(atMillis))},"args":{"value":${value}}}`
  );
}

function metadata(what: string, row: number, args: Json): string {
  return `{"ph":"M","name":"${what}","pid":${PROCESS},"tid":${row},"args":${JSON.stringify(args)}}`;
}

const rowOf = (thread: number): number => (thread + 1) * ROWS_PER_THREAD;

/** The file, piece by piece. */
export function* chromeTrace(trace: RecordedTrace, title: string, eventsMax = EVENTS_MAX): Generator<string> {
  yield '{"displayTimeUnit":"ms","traceEvents":[\n';
  yield metadata('process_name', 0, { name: title });
  let written = 0;
  let leftOut = 0;
  for (const event of events(trace)) {
    if (written < eventsMax) {
      written++;
      yield `,\n${event}`;
    } else {
      leftOut++;
    }
  }
  const dropped = trace.threads.reduce((sum, thread) => sum + thread.dropped, 0);
  const about = { eventsLeftOut: leftOut + trace.notKept, eventsDropped: dropped };
  yield `\n],"otherData":${JSON.stringify(about)}}\n`;
}

function* events(trace: RecordedTrace): Generator<string> {
  for (const [index, thread] of trace.threads.entries()) {
    if (thread.role === 'reader') continue;
    yield* names(rowOf(index), thread.name, index);
    if (thread.role === 'compute') yield* computeSlices(thread.log, rowOf(index));
    else yield* plainSlices(trace, thread, rowOf(index));
  }
  yield* readSlices(trace);
}

function* names(row: number, name: string, order: number): Generator<string> {
  yield metadata('thread_name', row, { name });
  yield metadata('thread_sort_index', row, { sort_index: order });
}

const stepName = (log: TraceLog, index: number): string => {
  const [position, rows] = [log.a(index), log.b(index)];
  return log.c(index) === 1 ? `token ${position}` : `prompt ${position} to ${position + rows - 1}`;
};

/** Steps, the layers in them, the laps in those. The format wants no order. */
function* computeSlices(log: TraceLog, row: number): Generator<string> {
  let stepBegin = Number.NaN;
  let layer = -1;
  let layerBegin = 0;
  let layerEnd = 0;
  const endLayer = function* (): Generator<string> {
    if (layer < 0) return;
    yield slice({
      name: `layer ${layer}`,
      category: 'layer',
      row,
      beginMillis: layerBegin,
      endMillis: layerEnd,
    });
    layer = -1;
  };
  for (let index = 0; index < log.count; index++) {
    const kind = log.kind(index);
    const [beginMillis, endMillis] = [log.beginMillis(index), log.endMillis(index)];
    const name = TRACE_KINDS[kind]!;
    if (kind === TRACE.issue) {
      const args = {
        layer: log.layer(index),
        expert: log.b(index),
        slot: log.a(index),
        prefetch: log.c(index) === 1,
      };
      yield instant('issue', row, beginMillis, args);
      continue;
    }
    if (kind === TRACE.runBegin || kind === TRACE.runEnd || kind === TRACE.stepEnd) {
      yield* endLayer();
      if (kind === TRACE.stepEnd) {
        yield slice({ name: stepName(log, index), category: 'step', row, beginMillis: stepBegin, endMillis });
      }
      stepBegin = endMillis;
      continue;
    }
    if (kind === TRACE.mix || OUTSIDE_LAYERS.includes(kind)) yield* endLayer();
    if (kind === TRACE.mix) [layer, layerBegin] = [log.layer(index), beginMillis];
    layerEnd = endMillis;
    const args = kind === TRACE.expert ? { args: { expert: log.a(index) } } : {};
    yield slice({ name, category: 'lap', row, beginMillis, endMillis, ...args });
  }
  yield* endLayer();
}

const OUTSIDE_LAYERS: readonly number[] = [TRACE.waitPrompt, TRACE.waitToken, TRACE.waitLogits, TRACE.logits];

function* plainSlices(trace: RecordedTrace, { log }: TracedThread, row: number): Generator<string> {
  for (let index = 0; index < log.count; index++) {
    const kind = log.kind(index);
    const [beginMillis, endMillis] = [log.beginMillis(index), log.endMillis(index)];
    if (kind === TRACE.counter) yield counter(trace.counters[log.a(index)]!.name, beginMillis, log.b(index));
    else if (kind === TRACE.text) yield instant('text', row, beginMillis, { token: log.a(index) });
    else yield slice({ name: TRACE_KINDS[kind]!, category: 'span', row, beginMillis, endMillis });
  }
}

/** Every read in the first row of its thread that is free. */
function* readSlices(trace: RecordedTrace): Generator<string> {
  const rowsOf = new Map<number, number[]>();
  for (const read of readsOf(trace)) {
    const ends = rowsOf.get(read.thread) ?? [];
    rowsOf.set(read.thread, ends);
    const free = ends.findIndex((endNanos) => endNanos <= nanosOf(read.beginMillis));
    const at = free < 0 ? ends.length : free;
    const row = rowOf(read.thread) + at;
    if (free < 0) {
      const { name } = trace.threads[read.thread]!;
      yield* names(row, at === 0 ? name : `${name} (${at + 1} at once)`, read.thread);
    }
    ends[at] = nanosOf(read.endMillis);
    yield readSlice(read, row);
  }
}

function readSlice({ issue, byteLength, beginMillis, endMillis }: ExpertRead, row: number): string {
  const name = issue === undefined ? 'weights' : `layer ${issue.layer} expert ${issue.expert}`;
  const args = { bytes: byteLength, lane: issue?.prefetch === true ? 'prefetch' : 'demand' };
  return slice({ name, category: 'read', row, beginMillis, endMillis, args });
}
