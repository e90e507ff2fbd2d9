/**
 * The routed experts of one layer: from the router's choice to every expert's output.
 *
 * Order of work: issue the reads of what is missing, run the shared expert and the hits while they are under way, then
 * each arrival as it comes. The order in which experts are computed does not touch the result: each output goes to its
 * own buffer and the backend sums them in the router's order.
 *
 * It works with any slab that holds at least one slot per class: what does not fit now is admitted when an expert that
 * has been computed gives its slot back. That is also how a prefill chunk, whose union of experts may be larger than the
 * whole slab, streams through it.
 *
 * A GPU reads a slot after `expert` has returned, so its slots stay pinned until the next layer's routes are there, which
 * is behind all of this layer's work, or until `finish` has waited because a slot is needed now.
 *
 * Invariant: an expert is computed only from a slot whose every chunk has arrived. A failed read ends the layer with a
 * typed error; nothing is skipped.
 */
import { MoestreamError } from '../errors.ts';
import type { ControlBlock } from '../pipeline/control.ts';
import { NONE } from '../pipeline/eviction.ts';
import { type ChunkList, type ExpertLayout, emptyChunkList, SPANS } from '../pipeline/expert-layout.ts';
import {
  emptyRequest,
  type FetchQueue,
  LANE_DEMAND,
  LANE_PREFETCH,
  type ReadRequest,
} from '../pipeline/fetch-queue.ts';
import { SLOT_LOADING, SLOT_READY, type Slab, type SlotPlace } from '../pipeline/slab.ts';
import { FAILURE_ABANDONED, type ReadFailure, type Tickets } from '../pipeline/tickets.ts';

/** The part of the backend that this file drives. */
export interface ExpertBackend {
  shared(layer: number): void;
  expert(
    layer: number,
    expert: number,
    segment: number,
    gateByte: number,
    upByte: number,
    downByte: number,
  ): void;
  flush(): void;
  finish(): void;
}

export interface SchedulerParts {
  readonly backend: ExpertBackend;
  /** Whether the backend still reads a slot when `expert` has returned. */
  readonly readsBehind: boolean;
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
  readonly expertsPerToken: number;
  readonly readTimeoutMillis: number;
  /** Makes the typed error of a failed read of this expert. */
  readonly readError: (failure: ReadFailure, layer: number, expert: number) => MoestreamError;
}

/** Counters of one run; a new run starts a new one. */
export interface ExpertCounters {
  /** Experts wanted, once per layer and step however many rows want them. */
  lookups: number;
  hits: number;
  /** Wanted while a prefetch was still reading them. */
  lateHits: number;
  misses: number;
  bytesRead: number;
  prefetches: number;
  /** Prefetches that nobody wanted any more before all of their chunks had reached the disk. */
  prefetchesDropped: number;
  prefetchFailures: number;
  /** Time in which compute had nothing to do but wait for a read. */
  waitMicros: number;
}

export const newCounters = (): ExpertCounters => ({
  lookups: 0,
  hits: 0,
  lateHits: 0,
  misses: 0,
  bytesRead: 0,
  prefetches: 0,
  prefetchesDropped: 0,
  prefetchFailures: 0,
  waitMicros: 0,
});

export class ExpertScheduler {
  counters = newCounters();
  private readonly parts: SchedulerParts;
  private readonly chunks: ChunkList = emptyChunkList();
  private readonly request: ReadRequest = emptyRequest();
  /** Experts of the current layer in the order the router named them, their slots, and whether they are computed. */
  private readonly wanted: Int32Array;
  private readonly slotOf: Int32Array;
  private readonly done: Uint8Array;
  private wantedCount = 0;
  private nextMiss = 0;
  /** (experts): the layer step that last saw an expert, so that each is wanted once. */
  private readonly seenIn: Int32Array;
  private step = 0;
  /** Slots whose reads are under way. */
  private readonly loading: Int32Array;
  private loadingCount = 0;
  /** Slots that the backend may still be reading. */
  private readonly behind: Int32Array;
  private behindCount = 0;

  constructor(parts: SchedulerParts) {
    this.parts = parts;
    this.wanted = new Int32Array(parts.experts);
    this.slotOf = new Int32Array(parts.experts);
    this.done = new Uint8Array(parts.experts);
    this.seenIn = new Int32Array(parts.experts);
    this.loading = new Int32Array(parts.places.length);
    this.behind = new Int32Array(parts.places.length);
  }

  /** Runs shared and routed experts of a layer. `ids` is (rows, top-k). False when the pipeline is stopping. */
  runLayer(layer: number, ids: Int32Array, idCount: number): boolean {
    this.releaseBehind();
    this.collect(ids, idCount);
    this.settle();
    this.dropUnwanted(layer);
    try {
      this.pinPresent(layer);
      if (!this.admitMissing(layer)) return false;
      this.parts.backend.shared(layer);
      return this.computeAll(layer);
    } finally {
      this.unpinRest();
    }
  }

  /**
   * Starts reading an expert that may be wanted soon. Never waits, and never takes a slot that the current layer could
   * need: twice top-k slots stay free or evictable.
   */
  prefetch(layer: number, expert: number): void {
    const { slab, queue, expertsPerToken } = this.parts;
    if (slab.find(layer, expert) !== NONE) return;
    if (queue.waiting(LANE_DEMAND) > 0 || this.loadingCount >= expertsPerToken) return;
    if (slab.evictable(layer) <= 2 * expertsPerToken) return;
    this.parts.layout.chunksOf(layer, expert, this.chunks);
    if (queue.waiting(LANE_PREFETCH) + this.chunks.count > queue.slots) return;
    this.issue(layer, expert, LANE_PREFETCH);
    this.counters.prefetches++;
  }

  /** Gives back the slots that the backend has read. Only when it is known to have ended. */
  releaseBehind(): void {
    for (let index = 0; index < this.behindCount; index++) this.parts.slab.unpin(this.behind[index]!);
    this.behindCount = 0;
  }

  private collect(ids: Int32Array, idCount: number): void {
    this.step = (this.step + 1) | 0;
    this.wantedCount = 0;
    for (let index = 0; index < idCount; index++) {
      const expert = ids[index]!;
      if (this.seenIn[expert] === this.step) continue;
      this.seenIn[expert] = this.step;
      this.wanted[this.wantedCount] = expert;
      this.slotOf[this.wantedCount] = NONE;
      this.done[this.wantedCount] = 0;
      this.wantedCount++;
    }
    this.counters.lookups += this.wantedCount;
    this.nextMiss = 0;
  }

  private pinPresent(layer: number): void {
    const { slab } = this.parts;
    for (let index = 0; index < this.wantedCount; index++) {
      const expert = this.wanted[index]!;
      slab.note(layer, expert);
      const slot = slab.find(layer, expert);
      if (slot === NONE) continue;
      slab.pin(slot);
      this.slotOf[index] = slot;
      if (slab.stateOf(slot) === SLOT_READY) {
        this.counters.hits++;
      } else {
        this.counters.lateHits++;
        this.promote(slot, layer, expert);
      }
    }
  }

  /**
   * A prefetch that has become a demand: its chunks that no reader has taken are queued once more, in the demand lane.
   * Whoever comes to the other copies finds the chunks taken. With a full lane they are read from where they stand.
   */
  private promote(slot: number, layer: number, expert: number): void {
    const { tickets, queue, layout } = this.parts;
    const unclaimed = tickets.unclaimed(slot);
    if (unclaimed === 0) return;
    layout.chunksOf(layer, expert, this.chunks);
    const firstClaim = tickets.firstClaim(slot);
    for (let index = 0; index < this.chunks.count; index++) {
      if ((unclaimed & (1 << index)) === 0) continue;
      this.fillRequest(slot, firstClaim, index);
      if (!queue.tryPush(LANE_DEMAND, this.request)) return;
    }
  }

  /** Prefetches for this layer that the router did not choose: what has not reached the disk yet never will. */
  private dropUnwanted(layer: number): void {
    const { slab, tickets } = this.parts;
    for (let index = 0; index < this.loadingCount; index++) {
      const slot = this.loading[index]!;
      if (slab.layerOf(slot) !== layer || this.seenIn[slab.expertOf(slot)] === this.step) continue;
      tickets.cancel(slot);
    }
  }

  /** Issues the reads of missing experts as far as slots go. False when the pipeline is stopping. */
  private admitMissing(layer: number): boolean {
    const { slab } = this.parts;
    for (; this.nextMiss < this.wantedCount; this.nextMiss++) {
      if (this.slotOf[this.nextMiss] !== NONE || this.done[this.nextMiss] === 1) continue;
      if (!slab.canAdmit(layer) && !this.waitForBackend(layer)) return true;
      const slot = this.issue(layer, this.wanted[this.nextMiss]!, LANE_DEMAND);
      if (slot === NONE) return false;
      slab.pin(slot);
      this.slotOf[this.nextMiss] = slot;
      this.counters.misses++;
    }
    return true;
  }

  /** Whether a slot for this layer came free by waiting for the backend. */
  private waitForBackend(layer: number): boolean {
    if (this.behindCount === 0) return false;
    this.parts.backend.finish();
    this.releaseBehind();
    return this.parts.slab.canAdmit(layer);
  }

  /** Admits an expert and queues its chunks. NONE when the pipeline stops before all of them are queued. */
  private issue(layer: number, expert: number, lane: number): number {
    const { slab, layout, queue, tickets, control, readTimeoutMillis } = this.parts;
    const slot = slab.admit(layer, expert);
    layout.chunksOf(layer, expert, this.chunks);
    const firstClaim = tickets.open(slot, this.chunks.count);
    this.loading[this.loadingCount++] = slot;
    for (let index = 0; index < this.chunks.count; index++) {
      this.fillRequest(slot, firstClaim, index);
      this.counters.bytesRead += this.request.requiredBytes;
      if (queue.push(lane, this.request, control, readTimeoutMillis)) continue;
      tickets.cancel(slot);
      if (control.stopping) return NONE;
      throw this.timeout(layer, expert, 'no reader took it');
    }
    return slot;
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

  private computeAll(layer: number): boolean {
    let left = this.wantedCount;
    while (left > 0) {
      const computed = this.computeReady(layer);
      left -= computed;
      if (left === 0) break;
      this.settle();
      if (!this.admitMissing(layer)) return false;
      if (computed === 0 && !this.anyReady() && !this.waitForArrival(layer)) return false;
    }
    return true;
  }

  /** Computes every wanted expert whose bytes are here; returns how many. */
  private computeReady(layer: number): number {
    const { backend, slab, places, layout } = this.parts;
    let computed = 0;
    for (let index = 0; index < this.wantedCount; index++) {
      const slot = this.slotOf[index]!;
      if (slot === NONE || slab.stateOf(slot) !== SLOT_READY) continue;
      const expert = this.wanted[index]!;
      const { segment, bytes } = places[slot]!;
      backend.expert(
        layer,
        expert,
        segment,
        bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('gate')),
        bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('up')),
        bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('down')),
      );
      if (this.parts.readsBehind) this.behind[this.behindCount++] = slot;
      else slab.unpin(slot);
      this.slotOf[index] = NONE;
      this.done[index] = 1;
      computed++;
    }
    return computed;
  }

  private anyReady(): boolean {
    for (let index = 0; index < this.wantedCount; index++) {
      const slot = this.slotOf[index]!;
      if (slot !== NONE && this.parts.slab.stateOf(slot) === SLOT_READY) return true;
    }
    return false;
  }

  /** Takes note of the loads that have ended. Throws when one that this layer wants has failed. */
  private settle(): void {
    const { slab, tickets } = this.parts;
    for (let index = this.loadingCount - 1; index >= 0; index--) {
      const slot = this.loading[index]!;
      if (!tickets.isDone(slot)) continue;
      this.loading[index] = this.loading[--this.loadingCount]!;
      if (tickets.hasFailed(slot)) this.settleFailed(slot);
      else slab.markReady(slot);
    }
  }

  private settleFailed(slot: number): void {
    const { slab, tickets } = this.parts;
    const failure = tickets.failure(slot);
    const [layer, expert] = [slab.layerOf(slot), slab.expertOf(slot)];
    const wantedAt = this.slotOf.subarray(0, this.wantedCount).indexOf(slot);
    slab.markFailed(slot);
    if (failure.kind === FAILURE_ABANDONED) {
      this.counters.prefetchesDropped++;
      if (wantedAt < 0) return;
      // Dropped for one token and wanted by the next before its last chunk had come: read it anew.
      slab.unpin(slot);
      this.slotOf[wantedAt] = NONE;
      this.nextMiss = Math.min(this.nextMiss, wantedAt);
    } else if (wantedAt < 0) {
      // Nobody waits for it. If it is wanted later it is read again, and fails loudly then.
      this.counters.prefetchFailures++;
    } else {
      throw this.parts.readError(failure, layer, expert);
    }
  }

  /** Sleeps until a load has ended. False when the pipeline is stopping. */
  private waitForArrival(layer: number): boolean {
    const { backend, tickets, control, readTimeoutMillis } = this.parts;
    backend.flush();
    const startMillis = performance.now();
    let waiting = true;
    while (waiting) {
      const epoch = tickets.bell.enter();
      waiting = !this.anyDone() && !control.stopping;
      const leftMillis = startMillis + readTimeoutMillis - performance.now();
      if (waiting && leftMillis > 0) tickets.bell.sleep(epoch, leftMillis);
      tickets.bell.leave();
      if (waiting && leftMillis <= 0) throw this.timeout(layer, this.firstLoading(), 'no bytes arrived');
    }
    this.counters.waitMicros += (performance.now() - startMillis) * 1000;
    return !control.stopping;
  }

  private anyDone(): boolean {
    for (let index = 0; index < this.loadingCount; index++) {
      if (this.parts.tickets.isDone(this.loading[index]!)) return true;
    }
    return false;
  }

  private firstLoading(): number {
    const { slab } = this.parts;
    for (let index = 0; index < this.wantedCount; index++) {
      const slot = this.slotOf[index]!;
      if (slot !== NONE && slab.stateOf(slot) === SLOT_LOADING) return this.wanted[index]!;
    }
    return NONE;
  }

  private timeout(layer: number, expert: number, what: string): MoestreamError {
    return new MoestreamError(
      'READ_TIMEOUT',
      `${what} for expert ${expert} of layer ${layer} within ${this.parts.readTimeoutMillis} ms`,
      { hint: 'The disk does not answer; check the system log and the disk.' },
    );
  }

  /** A layer that ends early, by an error or a stop, must leave no pin behind. */
  private unpinRest(): void {
    for (let index = 0; index < this.wantedCount; index++) {
      const slot = this.slotOf[index]!;
      if (slot !== NONE) this.parts.slab.unpin(slot);
      this.slotOf[index] = NONE;
    }
  }
}
