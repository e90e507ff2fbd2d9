/** The reads of a recorded run: which thread read what for which expert, and how long it had been waiting. */
import { LANE_PREFETCH } from '../pipeline/fetch-queue.ts';
import { TRACE } from '../pipeline/trace.ts';
import type { RecordedTrace, TraceLog } from '../pipeline/trace-log.ts';

export interface ExpertRead {
  readonly thread: number;
  readonly beginMillis: number;
  readonly endMillis: number;
  /** Zero for one that failed. */
  readonly byteLength: number;
  /** What it was for; undefined for the dense weights. */
  readonly issue: Issue | undefined;
}

export interface Issue {
  readonly atMillis: number;
  readonly layer: number;
  readonly expert: number;
  readonly prefetch: boolean;
}

/** Two threads' clocks agree to a few microseconds; an issue comes before its reads. */
const CLOCK_SLACK_MILLIS = 0.05;

/** Per slot, the issues in the order of time. */
function issuesBySlot(log: TraceLog): Map<number, Issue[]> {
  const bySlot = new Map<number, Issue[]>();
  for (let index = 0; index < log.count; index++) {
    if (log.kind(index) !== TRACE.issue) continue;
    const slot = log.a(index);
    const issue = {
      atMillis: log.beginMillis(index),
      layer: log.layer(index),
      expert: log.b(index),
      prefetch: log.c(index) === LANE_PREFETCH,
    };
    const issues = bySlot.get(slot);
    if (issues === undefined) bySlot.set(slot, [issue]);
    else issues.push(issue);
  }
  return bySlot;
}

/** The last issue that came before this time. */
function lastBefore(issues: readonly Issue[], atMillis: number): Issue | undefined {
  let [low, high] = [0, issues.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (issues[middle]!.atMillis <= atMillis + CLOCK_SLACK_MILLIS) low = middle + 1;
    else high = middle;
  }
  return issues[low - 1];
}

/** All reads, in the order in which they began. */
export function readsOf(trace: RecordedTrace): ExpertRead[] {
  const compute = trace.threads.find(({ role }) => role === 'compute');
  const bySlot = compute === undefined ? new Map<number, Issue[]>() : issuesBySlot(compute.log);
  const reads: ExpertRead[] = [];
  trace.threads.forEach(({ role, log }, thread) => {
    if (role !== 'reader') return;
    for (let index = 0; index < log.count; index++) {
      if (log.kind(index) !== TRACE.read) continue;
      const [beginMillis, endMillis] = [log.beginMillis(index), log.endMillis(index)];
      const issue = lastBefore(bySlot.get(log.a(index)) ?? [], beginMillis);
      reads.push({ thread, beginMillis, endMillis, byteLength: Math.max(0, log.b(index)), issue });
    }
  });
  return reads.sort((a, b) => a.beginMillis - b.beginMillis);
}
