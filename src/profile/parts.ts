/**
 * What a stretch of the compute thread's time was spent on.
 *
 * The thread's laps have no gaps, and each lap goes into exactly one part or is divided between two. So the parts of a
 * token sum to the token's time; what is missing is what was lost from a full ring, and is said.
 *
 *     compute      the backend's products: mixer, shared and routed experts, sums, the head
 *     disk         waiting for a read (or for room to ask for one) while at least one read was under way
 *     hand-offs    waiting while none was; waiting for ids, less the sampler's own time
 *     sampling     waiting for an id while the sampler chose one and sent its text
 *     scheduling   what is in the cache, what to ask for, what has come, which hints to take
 */
import { TRACE } from '../pipeline/trace.ts';
import type { Cover } from './cover.ts';

export const PARTS = ['compute', 'disk', 'handOffs', 'sampling', 'scheduling'] as const;
export type Part = (typeof PARTS)[number];

export const PART_LABELS: Readonly<Record<Part, string>> = {
  compute: 'compute',
  disk: 'disk',
  handOffs: 'hand-offs',
  sampling: 'sampling',
  scheduling: 'scheduling',
};

export type PartMillis = Record<Part, number>;

export const noMillis = (): PartMillis => ({ compute: 0, disk: 0, handOffs: 0, sampling: 0, scheduling: 0 });

export const sumMillis = (parts: PartMillis): number => PARTS.reduce((sum, part) => sum + parts[part], 0);

export function addMillis(to: PartMillis, more: PartMillis): void {
  for (const part of PARTS) to[part] += more[part];
}

const COMPUTE: readonly number[] = [TRACE.mix, TRACE.shared, TRACE.expert, TRACE.combine, TRACE.logits];
const READ_WAITS: readonly number[] = [TRACE.waitRead, TRACE.waitQueue];
const ID_WAITS: readonly number[] = [TRACE.waitToken, TRACE.waitLogits, TRACE.waitPrompt];
const SCHEDULING: readonly number[] = [TRACE.admit, TRACE.schedule, TRACE.hints];

/** Laps of these kinds are compute time. */
export const isCompute = (kind: number): boolean => COMPUTE.includes(kind);
export const isReadWait = (kind: number): boolean => READ_WAITS.includes(kind);
export const isLap = (kind: number): boolean =>
  isCompute(kind) || isReadWait(kind) || ID_WAITS.includes(kind) || SCHEDULING.includes(kind);

/** Adds a lap to the parts. Laps come in the order of time. */
export function addLap(
  parts: PartMillis,
  kind: number,
  beginMillis: number,
  endMillis: number,
  reading: Cover,
  sampling: Cover,
): void {
  const millis = endMillis - beginMillis;
  if (isCompute(kind)) parts.compute += millis;
  else if (SCHEDULING.includes(kind)) parts.scheduling += millis;
  else {
    const forReads = isReadWait(kind);
    const inside = (forReads ? reading : sampling).overlapMillis(beginMillis, endMillis);
    parts[forReads ? 'disk' : 'sampling'] += inside;
    parts.handOffs += millis - inside;
  }
}
