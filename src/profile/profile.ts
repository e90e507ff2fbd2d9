/**
 * From a recorded run to its figures: per phase, per stage, per layer, per token.
 *
 * A step is a chunk of the prompt or a token of the answer. It begins where the one before ended, with waiting for its
 * ids, and ends when its logits have been handed over. So the steps of a phase sum to the phase's time, and what follows
 * the last step (sampling the last token) is the run's end.
 */
import { MoestreamError } from '../errors.ts';
import { TRACE, TRACE_KINDS, type TraceKind } from '../pipeline/trace.ts';
import type { RecordedTrace, TraceLog, TraceRole } from '../pipeline/trace-log.ts';
import { Cover, type Stretch } from './cover.ts';
import { Distribution } from './distribution.ts';
import {
  addLap,
  addMillis,
  isCompute,
  isLap,
  isReadWait,
  noMillis,
  PARTS,
  type Part,
  type PartMillis,
} from './parts.ts';
import { type ExpertRead, readsOf } from './reads.ts';

export interface Step {
  readonly position: number;
  readonly rows: number;
  readonly beginMillis: number;
  readonly endMillis: number;
  readonly parts: PartMillis;
  /** Its events in the compute thread's log. */
  readonly firstEvent: number;
  readonly lastEvent: number;
}

export interface LayerProfile {
  readonly parts: PartMillis;
  /** Per step. */
  readonly compute: Distribution;
  readonly readWait: Distribution;
  lookups: number;
  hits: number;
  lateHits: number;
  reads: number;
  prefetchReads: number;
  bytesRead: number;
}

export interface DiskProfile {
  readonly reads: number;
  readonly bytesRead: number;
  readonly prefetchBytes: number;
  /** Time in which at least one read was under way. */
  readonly busyMillis: number;
  /** Reads under way, on average while there was one, and at most. */
  readonly meanDepth: number;
  readonly mostDepth: number;
  readonly latency: Distribution;
  /** From the issue of an expert to the beginning of its read, of those that were wanted at once. */
  readonly queued: Distribution;
}

export interface PhaseProfile {
  readonly name: 'prompt' | 'answer';
  readonly tokens: number;
  readonly beginMillis: number;
  readonly endMillis: number;
  readonly parts: PartMillis;
  readonly steps: readonly Step[];
  readonly stepTime: Distribution;
  /** Of each part, per step. */
  readonly partTimes: Readonly<Record<Part, Distribution>>;
  readonly layers: readonly LayerProfile[];
  /** Kinds of laps and spans that occurred, in the order of TRACE_KINDS. */
  readonly kinds: ReadonlyMap<TraceKind, Distribution>;
  readonly disk: DiskProfile;
}

export interface Occupancy {
  readonly name: string;
  readonly most: number;
  readonly mean: number;
  readonly highest: number;
  readonly looks: number;
}

export interface RunProfile {
  readonly prompt: PhaseProfile;
  readonly answer: PhaseProfile;
  readonly beginMillis: number;
  readonly endMillis: number;
  readonly reads: readonly ExpertRead[];
  readonly occupancy: readonly Occupancy[];
  /** Events that were lost or not kept: above zero, the parts do not sum to the whole. */
  readonly eventsLost: number;
  readonly eventsKept: number;
}

const logOf = (trace: RecordedTrace, role: TraceRole): TraceLog => {
  const found = trace.threads.find((each) => each.role === role);
  if (found !== undefined) return found.log;
  throw new MoestreamError('INTERNAL', `the trace has no ${role} thread`);
};

function spansOf(log: TraceLog, kinds: readonly number[]): Stretch[] {
  const spans: Stretch[] = [];
  for (let index = 0; index < log.count; index++) {
    if (!kinds.includes(log.kind(index))) continue;
    spans.push({ beginMillis: log.beginMillis(index), endMillis: log.endMillis(index) });
  }
  return spans;
}

/** The last run of a trace. Throws ENGINE_STATE when there is none. */
export function profileOf(trace: RecordedTrace): RunProfile {
  const compute = logOf(trace, 'compute');
  const [first, last] = lastRun(compute);
  const [beginMillis, endMillis] = [compute.endMillis(first), compute.endMillis(last)];
  const reads = readsOf(trace).filter((read) => read.endMillis > beginMillis && read.beginMillis < endMillis);
  const walk = new Walk(compute, new Cover(reads), logOf(trace, 'sample'));
  for (let index = first; index < last; index++) walk.take(index);
  const promptEnd = walk.prompt.steps.at(-1)?.endMillis ?? endMillis;
  const sample = logOf(trace, 'sample');
  const phase = (name: 'prompt' | 'answer', from: number, to: number): PhaseProfile => {
    const own = walk[name];
    addOther(own, sample, [TRACE.sample, TRACE.deliver], from, to);
    for (const { role, log } of trace.threads) {
      if (role === 'predict') addOther(own, log, [TRACE.predict], from, to);
    }
    const ownReads = reads.filter((read) => read.beginMillis >= from && read.beginMillis < to);
    addReads(own, ownReads);
    const tokens = own.steps.reduce((sum, step) => sum + step.rows, 0);
    const end = own.steps.at(-1)?.endMillis ?? from;
    const kinds = new Map(
      TRACE_KINDS.flatMap((kind, index) => {
        const found = own.kinds.get(index);
        return found === undefined ? [] : [[kind, found] as const];
      }),
    );
    return { ...own, name, tokens, beginMillis: from, endMillis: end, kinds, disk: diskOf(ownReads) };
  };
  const lost = trace.threads.reduce((sum, { dropped }) => sum + dropped, trace.notKept);
  return {
    prompt: phase('prompt', beginMillis, promptEnd),
    answer: phase('answer', promptEnd, endMillis),
    beginMillis,
    endMillis,
    reads,
    occupancy: occupancyOf(trace, beginMillis, endMillis),
    eventsLost: lost,
    eventsKept: trace.threads.reduce((sum, { log }) => sum + log.count, 0),
  };
}

/**
 * First and last event of the last run. One whose end was not kept, or that still goes on, ends with what there is. Throws
 * ENGINE_STATE when nothing was run.
 */
function lastRun(log: TraceLog): readonly [number, number] {
  let first = log.count - 1;
  while (first >= 0 && log.kind(first) !== TRACE.runBegin) first--;
  if (first < 0) throw new MoestreamError('ENGINE_STATE', 'nothing to profile: the trace holds no run');
  let last = first;
  while (last + 1 < log.count && log.kind(last) !== TRACE.runEnd) last++;
  return [first, last];
}

interface PhaseSums {
  readonly parts: PartMillis;
  readonly steps: Step[];
  readonly stepTime: Distribution;
  readonly partTimes: Readonly<Record<Part, Distribution>>;
  readonly layers: LayerProfile[];
  readonly kinds: Map<number, Distribution>;
}

const newSums = (): PhaseSums => ({
  parts: noMillis(),
  steps: [],
  stepTime: new Distribution(),
  partTimes: {
    compute: new Distribution(),
    disk: new Distribution(),
    handOffs: new Distribution(),
    sampling: new Distribution(),
    scheduling: new Distribution(),
  },
  layers: [],
  kinds: new Map(),
});

const newLayer = (): LayerProfile => ({
  parts: noMillis(),
  compute: new Distribution(),
  readWait: new Distribution(),
  lookups: 0,
  hits: 0,
  lateHits: 0,
  reads: 0,
  prefetchReads: 0,
  bytesRead: 0,
});

function layerOf(sums: PhaseSums, layer: number): LayerProfile {
  while (sums.layers.length <= layer) sums.layers.push(newLayer());
  return sums.layers[layer]!;
}

function addTime(kinds: Map<number, Distribution>, kind: number, millis: number): void {
  let found = kinds.get(kind);
  if (found === undefined) {
    found = new Distribution();
    kinds.set(kind, found);
  }
  found.add(millis);
}

/** What one step has spent in one layer. */
interface LayerStep {
  readonly parts: PartMillis;
  readWaitMillis: number;
  lookups: number;
  hits: number;
  lateHits: number;
}

/** Goes through the compute thread's events of a run. Which phase a step belongs to is known at its end. */
class Walk {
  readonly prompt = newSums();
  readonly answer = newSums();
  private readonly log: TraceLog;
  private readonly reading: Cover;
  private readonly sampling: Cover;
  private stepParts = noMillis();
  private stepLaps: { readonly kind: number; readonly millis: number }[] = [];
  private stepLayers = new Map<number, LayerStep>();
  private stepBeginMillis = Number.NaN;
  private stepFirst = 0;
  private hitsSoFar = 0;
  private lateSoFar = 0;

  constructor(log: TraceLog, reading: Cover, sample: TraceLog) {
    this.log = log;
    this.reading = reading;
    this.sampling = new Cover(spansOf(sample, [TRACE.sample, TRACE.deliver]));
  }

  take(index: number): void {
    const { log } = this;
    const kind = log.kind(index);
    if (kind === TRACE.runBegin) this.beginStep(log.endMillis(index), index + 1);
    else if (kind === TRACE.stepEnd) this.endStep(index);
    else if (isLap(kind)) this.addLap(index, kind);
  }

  private addLap(index: number, kind: number): void {
    const { log } = this;
    const [beginMillis, endMillis] = [log.beginMillis(index), log.endMillis(index)];
    const parts = noMillis();
    addLap(parts, kind, beginMillis, endMillis, this.reading, this.sampling);
    addMillis(this.stepParts, parts);
    this.stepLaps.push({ kind, millis: endMillis - beginMillis });
    if (!belongsToLayer(kind)) return;
    const layer = this.layerStep(log.layer(index));
    addMillis(layer.parts, parts);
    if (isReadWait(kind)) layer.readWaitMillis += endMillis - beginMillis;
    if (kind !== TRACE.admit) return;
    layer.lookups += log.a(index);
    layer.hits += log.b(index) - this.hitsSoFar;
    layer.lateHits += log.c(index) - this.lateSoFar;
    this.hitsSoFar = log.b(index);
    this.lateSoFar = log.c(index);
  }

  private layerStep(layer: number): LayerStep {
    let found = this.stepLayers.get(layer);
    if (found === undefined) {
      found = { parts: noMillis(), readWaitMillis: 0, lookups: 0, hits: 0, lateHits: 0 };
      this.stepLayers.set(layer, found);
    }
    return found;
  }

  private endStep(index: number): void {
    const { log } = this;
    const endMillis = log.endMillis(index);
    const sums = log.c(index) === 1 ? this.answer : this.prompt;
    sums.steps.push({
      position: log.a(index),
      rows: log.b(index),
      beginMillis: this.stepBeginMillis,
      endMillis,
      parts: this.stepParts,
      firstEvent: this.stepFirst,
      lastEvent: index,
    });
    addMillis(sums.parts, this.stepParts);
    sums.stepTime.add(endMillis - this.stepBeginMillis);
    for (const part of PARTS) sums.partTimes[part].add(this.stepParts[part]);
    for (const { kind, millis } of this.stepLaps) addTime(sums.kinds, kind, millis);
    for (const [number, step] of this.stepLayers) {
      const layer = layerOf(sums, number);
      addMillis(layer.parts, step.parts);
      layer.compute.add(step.parts.compute);
      layer.readWait.add(step.readWaitMillis);
      layer.lookups += step.lookups;
      layer.hits += step.hits;
      layer.lateHits += step.lateHits;
    }
    this.beginStep(endMillis, index + 1);
  }

  private beginStep(beginMillis: number, first: number): void {
    this.stepBeginMillis = beginMillis;
    this.stepFirst = first;
    this.stepParts = noMillis();
    this.stepLaps = [];
    this.stepLayers = new Map();
  }
}

const PER_LAYER: readonly number[] = [TRACE.admit, TRACE.schedule, TRACE.hints];

function belongsToLayer(kind: number): boolean {
  return (isCompute(kind) && kind !== TRACE.logits) || isReadWait(kind) || PER_LAYER.includes(kind);
}

/** Spans of another thread that began within the phase. */
function addOther(sums: PhaseSums, log: TraceLog, kinds: readonly number[], from: number, to: number): void {
  for (let index = 0; index < log.count; index++) {
    const beginMillis = log.beginMillis(index);
    if (beginMillis < from || beginMillis >= to || !kinds.includes(log.kind(index))) continue;
    addTime(sums.kinds, log.kind(index), log.endMillis(index) - beginMillis);
  }
}

function addReads(sums: PhaseSums, reads: readonly ExpertRead[]): void {
  for (const { issue, byteLength } of reads) {
    if (issue === undefined) continue;
    const layer = layerOf(sums, issue.layer);
    layer.reads++;
    layer.bytesRead += byteLength;
    if (issue.prefetch) layer.prefetchReads++;
  }
}

function diskOf(reads: readonly ExpertRead[]): DiskProfile {
  const latency = new Distribution();
  const queued = new Distribution();
  let [bytesRead, prefetchBytes] = [0, 0];
  for (const { beginMillis, endMillis, byteLength, issue } of reads) {
    latency.add(endMillis - beginMillis);
    bytesRead += byteLength;
    if (issue?.prefetch === true) prefetchBytes += byteLength;
    else if (issue !== undefined) queued.add(Math.max(0, beginMillis - issue.atMillis));
  }
  const busyMillis = new Cover(reads).totalMillis;
  const meanDepth = busyMillis === 0 ? 0 : latency.totalMillis / busyMillis;
  const mostDepth = depthOf(reads).reduce((most, { depth }) => Math.max(most, depth), 0);
  return { reads: reads.length, bytesRead, prefetchBytes, busyMillis, meanDepth, mostDepth, latency, queued };
}

/** How many reads are under way from each moment on at which that changes. */
export function depthOf(reads: readonly Stretch[]): { atMillis: number; depth: number }[] {
  const changes = reads.flatMap(({ beginMillis, endMillis }) => [
    { atMillis: beginMillis, change: 1 },
    { atMillis: endMillis, change: -1 },
  ]);
  // What ends makes room before what begins at the same moment.
  changes.sort((a, b) => a.atMillis - b.atMillis || a.change - b.change);
  let depth = 0;
  return changes.map(({ atMillis, change }) => {
    depth += change;
    return { atMillis, depth };
  });
}

function occupancyOf(trace: RecordedTrace, from: number, to: number): Occupancy[] {
  const sums = trace.counters.map(({ name, most }) => ({ name, most, sum: 0, highest: 0, looks: 0 }));
  const log = logOf(trace, 'main');
  for (let index = 0; index < log.count; index++) {
    const atMillis = log.beginMillis(index);
    if (log.kind(index) !== TRACE.counter || atMillis < from || atMillis >= to) continue;
    const counter = sums[log.a(index)]!;
    counter.sum += log.b(index);
    counter.highest = Math.max(counter.highest, log.b(index));
    counter.looks++;
  }
  return sums.map(({ sum, ...each }) => ({ ...each, mean: each.looks === 0 ? 0 : sum / each.looks }));
}
