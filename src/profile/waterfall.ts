/** One step as a waterfall: a row per layer, and what the compute thread did in it, from left to right. */
import { TRACE, TRACE_KINDS } from '../pipeline/trace.ts';
import type { RecordedTrace, TraceLog } from '../pipeline/trace-log.ts';
import type { Waterfall, WaterfallSpan } from '../report/blocks.ts';
import type { Tone } from '../report/charts.ts';
import { isLap } from './parts.ts';
import type { Step } from './profile.ts';

interface Look {
  readonly label: string;
  readonly tone: Tone;
}

const MIX: Look = { label: 'mixer and router', tone: 'blue' };
const SHARED: Look = { label: 'shared expert', tone: 'teal' };
const EXPERT: Look = { label: 'experts', tone: 'green' };
const READS: Look = { label: 'waiting for reads', tone: 'orange' };
const SCHEDULING: Look = { label: 'scheduling', tone: 'purple' };
const IDS: Look = { label: 'waiting for ids', tone: 'red' };
const HEAD: Look = { label: 'logits', tone: 'yellow' };
const LEGEND = [IDS, MIX, SCHEDULING, SHARED, EXPERT, READS, HEAD];

const LOOKS = new Map<number, Look>([
  [TRACE.mix, MIX],
  [TRACE.shared, SHARED],
  [TRACE.expert, EXPERT],
  [TRACE.combine, EXPERT],
  [TRACE.waitRead, READS],
  [TRACE.waitQueue, READS],
  [TRACE.admit, SCHEDULING],
  [TRACE.schedule, SCHEDULING],
  [TRACE.hints, SCHEDULING],
  [TRACE.waitPrompt, IDS],
  [TRACE.waitToken, IDS],
  [TRACE.waitLogits, IDS],
  [TRACE.logits, HEAD],
]);

const WITHOUT_LAYER: ReadonlyMap<number, string> = new Map([
  [TRACE.waitPrompt, 'ids'],
  [TRACE.waitToken, 'ids'],
  [TRACE.waitLogits, 'logits'],
  [TRACE.logits, 'logits'],
]);

/** Above this many events a step is drawn as it is at so many moments: what is shorter than the gaps may not be seen. */
const EVENTS_DRAWN_MAX = 4000;

export function waterfallOf(trace: RecordedTrace, step: Step, title: string): Waterfall {
  const log = trace.threads.find(({ role }) => role === 'compute')?.log;
  const rows = new Map<string, { label: string; spans: WaterfallSpan[] }>();
  const many = step.lastEvent - step.firstEvent > EVENTS_DRAWN_MAX;
  const gapMillis = many ? (step.endMillis - step.beginMillis) / EVENTS_DRAWN_MAX : 0;
  for (let index = step.firstEvent; log !== undefined && index < step.lastEvent; index++) {
    const kind = log.kind(index);
    if (!isLap(kind)) continue;
    const label = WITHOUT_LAYER.get(kind) ?? `layer ${log.layer(index)}`;
    let row = rows.get(label);
    if (row === undefined) {
      row = { label, spans: [] };
      rows.set(label, row);
    }
    addSpan(row.spans, log, index, step, gapMillis);
  }
  const note = many ? { note: `Drawn as it was at ${EVENTS_DRAWN_MAX} moments.` } : {};
  return { kind: 'waterfall', title, ...note, unit: 'ms', legend: LEGEND, rows: [...rows.values()] };
}

/** Neighbours of one look become one span. */
function addSpan(spans: WaterfallSpan[], log: TraceLog, index: number, step: Step, gapMillis: number): void {
  const kind = log.kind(index);
  const { tone, label } = LOOKS.get(kind) ?? { tone: 'grey' as const, label: TRACE_KINDS[kind]! };
  const snapped = (millis: number): number =>
    gapMillis === 0 ? millis : Math.floor(millis / gapMillis) * gapMillis;
  const from = snapped(log.beginMillis(index) - step.beginMillis);
  const to = snapped(log.endMillis(index) - step.beginMillis);
  if (to <= from) return;
  const last = spans.at(-1);
  if (last?.tone === tone && from <= last.to + 1e-9) spans[spans.length - 1] = { ...last, to };
  else spans.push({ from, to, tone, label });
}
