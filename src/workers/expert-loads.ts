/**
 * The reads of experts into slots, from the request to the moment when every chunk is there.
 *
 * Compute issues them here and nowhere else, whoever wanted them: the router (a demand), a predictor's hint, or a chunk
 * that will want nearly all of the next layer. A prefetch that becomes a demand is promoted, one that nobody wants any more
 * is taken back as far as no reader has begun with it.
 *
 * Invariant: a slot is READY only when its ticket is at zero without a failure. A failed read of something that the router
 * wants ends the layer with a typed error; a failed prefetch is read anew if it has come to be wanted.
 */
import { MoestreamError } from '../errors.ts';
import type { ControlBlock } from '../pipeline/control.ts';
import { NONE } from '../pipeline/eviction.ts';
import { type ChunkList, type ExpertLayout, emptyChunkList } from '../pipeline/expert-layout.ts';
import {
  emptyRequest,
  type FetchQueue,
  LANE_DEMAND,
  LANE_PREFETCH,
  PREFETCH_FINENESS,
  type QueuedRead,
} from '../pipeline/fetch-queue.ts';
import { SLOT_LOADING, type Slab, type SlotPlace } from '../pipeline/slab.ts';
import { bitCount, FAILURE_ABANDONED, type ReadFailure, type Tickets } from '../pipeline/tickets.ts';
import { TRACE, type Tracer } from '../pipeline/trace.ts';
import type { Clock } from './clock.ts';
import type { LayerStep } from './layer-step.ts';
import { type PrefetchLedger, type Purpose, READ_DEMAND, READ_HINT } from './prefetch-ledger.ts';

export interface LoadParts {
  readonly slab: Slab;
  /** Where each slot's memory is; segments count from the slab's first. */
  readonly places: readonly SlotPlace[];
  /** The slab's first segment among all segments that readers know. */
  readonly firstSegment: number;
  readonly layout: ExpertLayout;
  readonly queue: FetchQueue;
  readonly tickets: Tickets;
  readonly control: ControlBlock;
  readonly experts: number;
  readonly readTimeoutMillis: number;
  /** Makes the typed error of a failed read of this expert. */
  readonly readError: (failure: ReadFailure, layer: number, expert: number) => MoestreamError;
}

export class ExpertLoads {
  /** Loads under way. */
  count = 0;
  private readonly parts: LoadParts;
  private readonly step: LayerStep;
  private readonly ledger: PrefetchLedger;
  private readonly clock: Clock;
  private readonly trace: Tracer;
  /** (count): their slots. */
  private readonly slots: Int32Array;
  /** (slots): into how many times more chunks than usual the slot's expert is cut. */
  private readonly fineness: Uint8Array;
  /** (slots): the step that demanded its load, 0 for a prefetch. */
  private readonly demandedIn: Int32Array;
  private readonly chunks: ChunkList = emptyChunkList();
  private readonly request: QueuedRead = emptyRequest();

  constructor(parts: LoadParts, step: LayerStep, ledger: PrefetchLedger, clock: Clock, trace: Tracer) {
    this.parts = parts;
    this.step = step;
    this.ledger = ledger;
    this.clock = clock;
    this.trace = trace;
    const slots = parts.places.length;
    this.slots = new Int32Array(slots);
    this.fineness = new Uint8Array(slots);
    this.demandedIn = new Int32Array(slots);
  }

  /** Whether the lane for this purpose has room for all chunks of an expert. */
  hasRoom(layer: number, expert: number, purpose: Purpose): boolean {
    const { queue, layout } = this.parts;
    layout.chunksOf(layer, expert, this.chunks, finenessOf(purpose));
    return queue.waiting(laneOf(purpose)) + this.chunks.count <= queue.slots;
  }

  /** Admits an expert and queues its chunks. NONE when the pipeline stops before all of them are queued. */
  issue(layer: number, expert: number, purpose: Purpose): number {
    const { slab, layout, queue, tickets, control, readTimeoutMillis } = this.parts;
    const { trace } = this;
    const lane = laneOf(purpose);
    const slot = slab.admit(layer, expert);
    this.fineness[slot] = finenessOf(purpose);
    this.demandedIn[slot] = purpose === READ_DEMAND ? this.step.number : 0;
    layout.chunksOf(layer, expert, this.chunks, this.fineness[slot]);
    const key = layer * this.parts.experts + expert;
    this.ledger.admitted(slot, key, slab.evictedKey, purpose, this.bytesOf(-1));
    const firstClaim = tickets.open(slot, this.chunks.count);
    trace.mark(TRACE.issue, layer, slot, expert, lane);
    this.slots[this.count++] = slot;
    for (let index = 0; index < this.chunks.count; index++) {
      this.fillRequest(slot, firstClaim, index);
      if (queue.tryPush(lane, this.request)) continue;
      trace.lap(TRACE.schedule, layer, 0, 0, 0);
      const pushed = queue.push(lane, this.request, control, readTimeoutMillis);
      trace.lap(TRACE.waitQueue, layer, 0, 0, 0);
      if (pushed) continue;
      tickets.cancel(slot);
      if (control.stopping) return NONE;
      throw this.timeout(layer, expert, 'no reader took it');
    }
    return slot;
  }

  /**
   * A prefetch that has become a demand: its chunks that no reader has taken are queued once more, in the demand lane.
   * Whoever comes to the other copies finds the chunks taken. With a full lane they are read from where they stand.
   */
  promote(slot: number, layer: number, expert: number): void {
    const { tickets, queue, layout } = this.parts;
    const unclaimed = tickets.unclaimed(slot);
    layout.chunksOf(layer, expert, this.chunks, this.fineness[slot]);
    this.ledger.wanted(slot, this.bytesOf(unclaimed));
    const firstClaim = tickets.firstClaim(slot);
    for (let index = 0; index < this.chunks.count; index++) {
      if ((unclaimed & (1 << index)) === 0) continue;
      this.fillRequest(slot, firstClaim, index);
      if (!queue.tryPush(LANE_DEMAND, this.request)) return;
    }
  }

  /** Prefetches for this layer that the router did not choose: what has not reached the disk yet never will. */
  dropUnwanted(): void {
    const { slab, tickets, layout } = this.parts;
    const { step } = this;
    for (let index = 0; index < this.count; index++) {
      const slot = this.slots[index]!;
      const expert = slab.expertOf(slot);
      if (slab.layerOf(slot) !== step.layer || step.wants(expert)) continue;
      const unread = tickets.cancel(slot);
      if (unread === 0) continue;
      layout.chunksOf(step.layer, expert, this.chunks, this.fineness[slot]);
      this.ledger.takenBack(slot, this.bytesOf(unread));
    }
  }

  /** What demands of this layer will wait for: chunks under way of prefetches that it does not want. */
  noteDelays(): void {
    const { slab, tickets, layout, queue } = this.parts;
    const { step } = this;
    if (queue.underWay(LANE_PREFETCH) === 0 || !step.anyMissing) return;
    for (let index = 0; index < this.count; index++) {
      const slot = this.slots[index]!;
      const layer = slab.layerOf(slot);
      const expert = slab.expertOf(slot);
      if (step.wantsOf(layer, expert)) continue;
      const underWay = tickets.pending(slot) - bitCount(tickets.unclaimed(slot));
      if (underWay <= 0) continue;
      layout.chunksOf(layer, expert, this.chunks, this.fineness[slot]);
      // Which chunks is not known: they are about equal.
      const chunkBytes = this.bytesOf(-1) / this.chunks.count;
      this.ledger.delayed(slot, underWay * chunkBytes);
    }
  }

  /** Takes note of the loads that have ended. Throws when one that this layer demanded has failed. */
  settle(): void {
    const { slab, tickets } = this.parts;
    for (let index = this.count - 1; index >= 0; index--) {
      const slot = this.slots[index]!;
      if (!tickets.isDone(slot)) continue;
      this.slots[index] = this.slots[--this.count]!;
      if (tickets.hasFailed(slot)) this.settleFailed(slot);
      else slab.markReady(slot);
    }
  }

  private settleFailed(slot: number): void {
    const { slab, tickets } = this.parts;
    const { step } = this;
    const { counters } = this.ledger;
    const failure = tickets.failure(slot);
    const [layer, expert] = [slab.layerOf(slot), slab.expertOf(slot)];
    const wantedAt = step.indexOfSlot(slot);
    slab.markFailed(slot);
    this.ledger.lost(slot);
    if (failure.kind === FAILURE_ABANDONED) counters.prefetchesDropped++;
    else if (wantedAt >= 0 && this.demandedIn[slot] === step.number) {
      throw this.parts.readError(failure, layer, expert);
    } else counters.prefetchFailures++;
    if (wantedAt < 0) return;
    // Begun for something else, dropped or failed there, and wanted now: read it anew, and then fail loudly.
    slab.unpin(slot);
    step.missAgain(wantedAt);
  }

  /** Sleeps until a load has ended. False when the pipeline is stopping. */
  waitForArrival(): boolean {
    const { clock, trace } = this;
    const { layer } = this.step;
    const { tickets, control, readTimeoutMillis } = this.parts;
    const startMillis = clock.nowMillis();
    let waiting = true;
    while (waiting) {
      const epoch = tickets.bell.enter();
      waiting = !this.anyDone() && !control.stopping;
      const leftMillis = startMillis + readTimeoutMillis - clock.nowMillis();
      if (waiting && leftMillis > 0) clock.sleep(tickets.bell, epoch, leftMillis);
      tickets.bell.leave();
      if (waiting && leftMillis <= 0) throw this.timeout(layer, this.firstLoading(), 'no bytes arrived');
    }
    this.ledger.counters.waitMicros += (clock.nowMillis() - startMillis) * 1000;
    trace.lap(TRACE.waitRead, layer, 0, 0, 0);
    return !control.stopping;
  }

  private anyDone(): boolean {
    for (let index = 0; index < this.count; index++) {
      if (this.parts.tickets.isDone(this.slots[index]!)) return true;
    }
    return false;
  }

  private firstLoading(): number {
    const { slab } = this.parts;
    const { step } = this;
    for (let index = 0; index < step.count; index++) {
      const slot = step.slots[index]!;
      if (slot !== NONE && slab.stateOf(slot) === SLOT_LOADING) return step.experts[index]!;
    }
    return NONE;
  }

  private fillRequest(slot: number, firstClaim: number, index: number): void {
    const { request, chunks } = this;
    const place = this.parts.places[slot]!;
    request.ticket = slot;
    request.claim = firstClaim + index;
    request.segment = this.parts.firstSegment + place.segment;
    request.file = chunks.file[index]!;
    request.offsetBytes = chunks.offsetBytes[index]!;
    request.byteLength = chunks.byteLength[index]!;
    request.requiredBytes = chunks.requiredBytes[index]!;
    request.intoBytes = place.bytes + chunks.slotBytes[index]!;
  }

  /** Bytes of those chunks of the list whose bits are set. */
  private bytesOf(bits: number): number {
    let bytes = 0;
    for (let index = 0; index < this.chunks.count; index++) {
      if ((bits & (1 << index)) !== 0) bytes += this.chunks.requiredBytes[index]!;
    }
    return bytes;
  }

  private timeout(layer: number, expert: number, what: string): MoestreamError {
    return new MoestreamError(
      'READ_TIMEOUT',
      `${what} for expert ${expert} of layer ${layer} within ${this.parts.readTimeoutMillis} ms`,
      { hint: 'The disk does not answer; check the system log and the disk.' },
    );
  }
}

function laneOf(purpose: Purpose): number {
  return purpose === READ_DEMAND ? LANE_DEMAND : LANE_PREFETCH;
}

/** Hints may be wrong, and then a demand waits for a chunk of theirs: half a chunk is as long as that may take. */
function finenessOf(purpose: Purpose): number {
  return purpose === READ_HINT ? PREFETCH_FINENESS : 1;
}
