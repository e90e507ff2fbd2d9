/**
 * The routed experts of one layer: from the router's choice to every expert's output.
 *
 * Order of work: issue the reads of what is missing, run the shared expert and the hits while they are under way, then
 * each arrival as it comes; hints are taken in between, and their reads wait in a lane of their own until the disk is idle. The order in which experts are computed does not touch the result: each output goes to its
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
import type { Backend } from '../native.ts';
import type { ControlBlock } from '../pipeline/control.ts';
import { NONE } from '../pipeline/eviction.ts';
import { type ChunkList, type ExpertLayout, emptyChunkList, SPANS } from '../pipeline/expert-layout.ts';
import {
  emptyRequest,
  type FetchQueue,
  LANE_DEMAND,
  LANE_PREFETCH,
  PREFETCH_FINENESS,
  type QueuedRead,
} from '../pipeline/fetch-queue.ts';
import { SLOT_LOADING, SLOT_READY, type Slab, type SlotPlace } from '../pipeline/slab.ts';
import { bitCount, FAILURE_ABANDONED, type ReadFailure, type Tickets } from '../pipeline/tickets.ts';
import { NO_TRACER, TRACE, type Tracer } from '../pipeline/trace.ts';
import { type Clock, SYSTEM_CLOCK } from './clock.ts';
import { type ExpertCounters, newCounters } from './expert-counters.ts';
import { PrefetchController } from './prefetch-controller.ts';
import { PrefetchLedger } from './prefetch-ledger.ts';

/** The part of the backend that this file drives. */
export type ExpertBackend = Pick<Backend, 'shared' | 'expert' | 'flush' | 'finish'>;

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
  readonly layers: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly readTimeoutMillis: number;
  /** How many hints are read. Without one, as many as a token has experts. */
  readonly controller?: PrefetchController;
  readonly clock?: Clock;
  /** Without one, nothing is recorded. */
  readonly trace?: Tracer;
  /** Makes the typed error of a failed read of this expert. */
  readonly readError: (failure: ReadFailure, layer: number, expert: number) => MoestreamError;
}

/** Experts that are computed before the queue is filled up again: 8 take less time than reading what it holds. */
const COMPUTED_AT_ONCE = 8;

export class ExpertScheduler {
  readonly controller: PrefetchController;
  /** Called where hints may be taken: between experts, while their reads are under way. */
  takeHints: () => void = () => {};
  /** Called once per layer, when the last of its reads are under way: soon the disk will have nothing to do. */
  askAhead: (layer: number) => void = () => {};
  private readonly parts: SchedulerParts;
  private readonly clock: Clock;
  private readonly trace: Tracer;
  private readonly ledger: PrefetchLedger;
  /** (slots): into how many times more chunks than usual the slot's expert is cut. */
  private readonly fineness: Uint8Array;
  /** (layers): hints accepted since the layer was last routed, and experts that it wanted then. */
  private readonly acceptedFor: Int32Array;
  private readonly wantedBy: Int32Array;
  private layerNow = 0;
  private insideLayer = false;
  private hasAsked = false;
  private readonly chunks: ChunkList = emptyChunkList();
  private readonly request: QueuedRead = emptyRequest();
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
  /** (slot) -> the step that demanded its load, 0 for a prefetch. */
  private readonly demandedIn: Int32Array;

  constructor(parts: SchedulerParts) {
    this.parts = parts;
    this.clock = parts.clock ?? SYSTEM_CLOCK;
    this.trace = parts.trace ?? NO_TRACER;
    this.controller = parts.controller ?? new PrefetchController('fixed', parts.expertsPerToken);
    const slots = parts.places.length;
    this.ledger = new PrefetchLedger(this.controller, slots, parts.layers * parts.experts);
    this.fineness = new Uint8Array(slots);
    this.acceptedFor = new Int32Array(parts.layers);
    this.wantedBy = new Int32Array(parts.layers);
    this.wanted = new Int32Array(parts.experts);
    this.slotOf = new Int32Array(parts.experts);
    this.done = new Uint8Array(parts.experts);
    this.seenIn = new Int32Array(parts.experts);
    this.loading = new Int32Array(slots);
    this.behind = new Int32Array(slots);
    this.demandedIn = new Int32Array(slots);
  }

  get counters(): ExpertCounters {
    return this.ledger.counters;
  }

  /** A new run starts new counters. */
  beginRun(): void {
    this.ledger.counters = newCounters();
    this.controller.beginRun();
  }

  /** Runs shared and routed experts of a layer. `ids` is (rows, top-k). False when the pipeline is stopping. */
  runLayer(layer: number, ids: Int32Array, idCount: number): boolean {
    const { trace } = this;
    const { backend } = this.parts;
    this.layerNow = layer;
    this.insideLayer = true;
    this.hasAsked = false;
    this.releaseBehind();
    this.collect(ids, idCount);
    this.wantedBy[layer] = this.wantedCount;
    this.acceptedFor[layer] = 0;
    this.settle();
    this.dropUnwanted(layer);
    try {
      this.pinPresent(layer);
      this.noteDelays();
      if (!this.admitMissing(layer)) return false;
      this.ask(layer, false);
      trace.lap(TRACE.admit, layer, this.wantedCount, this.counters.hits, this.counters.lateHits);
      backend.shared(layer);
      this.ask(layer, false);
      trace.lap(TRACE.shared, layer, 0, 0, 0);
      this.takeHints();
      trace.lap(TRACE.hints, layer, 0, 0, 0);
      const computed = this.computeAll(layer);
      this.ask(layer, true);
      return computed;
    } finally {
      this.unpinRest();
      this.insideLayer = false;
      this.controller.endStep();
    }
  }

  /**
   * Starts reading an expert that may be wanted soon, unless it is here, its layer has been routed, or the controller wants
   * no more for that layer. Hints of a layer come the most likely first. Never waits, and never takes a slot that the
   * current layer could need: twice top-k slots stay free or evictable. The reads begin when the disk has no demand.
   */
  prefetch(layer: number, expert: number): void {
    const { slab, queue, expertsPerToken } = this.parts;
    const { counters } = this;
    counters.hints++;
    if (slab.find(layer, expert) !== NONE) counters.hintsPresent++;
    else if (this.isStale(layer)) counters.hintsStale++;
    else if (this.acceptedFor[layer]! >= this.limitNow()) counters.hintsOverLimit++;
    else if (slab.evictable(layer) <= 2 * expertsPerToken) counters.hintsNoRoom++;
    else {
      this.parts.layout.chunksOf(layer, expert, this.chunks, PREFETCH_FINENESS);
      if (queue.waiting(LANE_PREFETCH) + this.chunks.count > queue.slots) {
        counters.hintsNoRoom++;
        return;
      }
      this.acceptedFor[layer] = this.acceptedFor[layer]! + 1;
      this.issue(layer, expert, LANE_PREFETCH);
    }
  }

  private isStale(layer: number): boolean {
    return this.insideLayer && layer === this.layerNow;
  }

  /** The limit is for one row: a layer that wanted more experts, for a batch of rows, may prefetch more. */
  private limitNow(): number {
    const rows = Math.max(1, this.wantedBy[this.layerNow]! / this.parts.expertsPerToken);
    return Math.ceil(this.controller.limit * rows);
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
        this.ledger.wanted(slot, 0);
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
  private dropUnwanted(layer: number): void {
    const { slab, tickets, layout } = this.parts;
    for (let index = 0; index < this.loadingCount; index++) {
      const slot = this.loading[index]!;
      const expert = slab.expertOf(slot);
      if (slab.layerOf(slot) !== layer || this.seenIn[expert] === this.step) continue;
      const unread = tickets.cancel(slot);
      if (unread === 0) continue;
      layout.chunksOf(layer, expert, this.chunks, this.fineness[slot]);
      this.ledger.takenBack(slot, this.bytesOf(unread));
    }
  }

  /** What demands of this layer will wait for: chunks under way of prefetches that it does not want. */
  private noteDelays(): void {
    const { slab, tickets } = this.parts;
    if (this.parts.queue.underWay(LANE_PREFETCH) === 0 || !this.anyMissing()) return;
    for (let index = 0; index < this.loadingCount; index++) {
      const slot = this.loading[index]!;
      if (slab.layerOf(slot) === this.layerNow && this.seenIn[slab.expertOf(slot)] === this.step) continue;
      const underWay = tickets.pending(slot) - bitCount(tickets.unclaimed(slot));
      if (underWay <= 0) continue;
      this.parts.layout.chunksOf(slab.layerOf(slot), slab.expertOf(slot), this.chunks, this.fineness[slot]);
      // Which chunks is not known: they are about equal.
      const chunkBytes = this.bytesOf(-1) / this.chunks.count;
      this.ledger.delayed(underWay * chunkBytes);
    }
  }

  private anyMissing(): boolean {
    for (let index = 0; index < this.wantedCount; index++) if (this.slotOf[index] === NONE) return true;
    return false;
  }

  /** Bytes of those chunks of the list whose bits are set. */
  private bytesOf(bits: number): number {
    let bytes = 0;
    for (let index = 0; index < this.chunks.count; index++) {
      if ((bits & (1 << index)) !== 0) bytes += this.chunks.requiredBytes[index]!;
    }
    return bytes;
  }

  /** Issues the reads of missing experts as far as slots and the queue go. False when the pipeline is stopping. */
  private admitMissing(layer: number): boolean {
    const { slab } = this.parts;
    for (; this.nextMiss < this.wantedCount; this.nextMiss++) {
      if (this.slotOf[this.nextMiss] !== NONE || this.done[this.nextMiss] === 1) continue;
      if (!slab.canAdmit(layer) && !this.waitForBackend(layer)) return true;
      if (this.queueIsFull(layer, this.wanted[this.nextMiss]!)) return true;
      const slot = this.issue(layer, this.wanted[this.nextMiss]!, LANE_DEMAND);
      if (slot === NONE) return false;
      slab.pin(slot);
      this.slotOf[this.nextMiss] = slot;
      this.counters.misses++;
    }
    return true;
  }

  /**
   * Whether to compute instead of waiting for room in the queue. A prefill chunk may miss 400 experts where the queue
   * holds 170: waiting here would leave the processor idle while the first 230 are read. Without a read under way
   * there is nothing to come back for, so then it waits.
   */
  private queueIsFull(layer: number, expert: number): boolean {
    const { queue, layout } = this.parts;
    if (this.loadingCount === 0) return false;
    layout.chunksOf(layer, expert, this.chunks);
    return queue.waiting(LANE_DEMAND) + this.chunks.count > queue.slots;
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
    const { trace } = this;
    const slot = slab.admit(layer, expert);
    const ahead = lane === LANE_PREFETCH;
    this.fineness[slot] = ahead ? PREFETCH_FINENESS : 1;
    this.demandedIn[slot] = ahead ? 0 : this.step;
    layout.chunksOf(layer, expert, this.chunks, this.fineness[slot]);
    const key = layer * this.parts.experts + expert;
    this.ledger.admitted(slot, key, slab.evictedKey, ahead, this.bytesOf(-1));
    const firstClaim = tickets.open(slot, this.chunks.count);
    trace.mark(TRACE.issue, layer, slot, expert, lane);
    this.loading[this.loadingCount++] = slot;
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
      const sleeps = computed === 0 && !this.anyReady();
      this.ask(layer, sleeps);
      this.takeHints();
      this.trace.lap(TRACE.schedule, layer, 0, 0, 0);
      if (sleeps && !this.waitForArrival(layer)) return false;
    }
    return true;
  }

  /**
   * Asks for hints when the readers have begun the last reads of this layer: before it sleeps for them, with all in the
   * stream that could be computed, or else as soon as the disk has nothing to do.
   */
  private ask(layer: number, sleeps: boolean): void {
    const { queue } = this.parts;
    if (this.hasAsked || this.nextMiss < this.wantedCount || queue.waiting(LANE_DEMAND) > 0) return;
    if (!sleeps && queue.underWay(LANE_DEMAND) > 0) return;
    this.hasAsked = true;
    this.askAhead(layer);
  }

  /** Computes wanted experts whose bytes are here, a few at a time while others wait for a slot; returns how many. */
  private computeReady(layer: number): number {
    const { trace } = this;
    const { backend, slab, places, layout } = this.parts;
    let computed = 0;
    for (let index = 0; index < this.wantedCount; index++) {
      if (computed === COMPUTED_AT_ONCE && this.nextMiss < this.wantedCount) return computed;
      const slot = this.slotOf[index]!;
      if (slot === NONE || slab.stateOf(slot) !== SLOT_READY) continue;
      const expert = this.wanted[index]!;
      const { segment, bytes } = places[slot]!;
      const roles = layout.rolesOf(layer);
      if (roles === undefined) {
        backend.expert(
          layer,
          expert,
          segment,
          bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('gate')),
          bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('up')),
          bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('down')),
        );
      } else this.computeSpans(layer, expert, segment, bytes, roles);
      trace.lap(TRACE.expert, layer, expert, 0, 0);
      if (this.parts.readsBehind) this.behind[this.behindCount++] = slot;
      else slab.unpin(slot);
      this.slotOf[index] = NONE;
      this.done[index] = 1;
      computed++;
      this.ask(layer, false);
      this.takeHints();
      trace.lap(TRACE.hints, layer, 0, 0, 0);
    }
    return computed;
  }

  /** An expert with spans of scales and biases; `roles` as in LayerSource. */
  private computeSpans(
    layer: number,
    expert: number,
    segment: number,
    slotBytes: number,
    roles: readonly number[],
  ): void {
    this.parts.backend.expert(
      layer,
      expert,
      segment,
      this.spanAt(layer, expert, slotBytes, roles[0]!),
      this.spanAt(layer, expert, slotBytes, roles[1]!),
      this.spanAt(layer, expert, slotBytes, roles[2]!),
      this.spanAt(layer, expert, slotBytes, roles[3]!),
      this.spanAt(layer, expert, slotBytes, roles[4]!),
      this.spanAt(layer, expert, slotBytes, roles[5]!),
      this.spanAt(layer, expert, slotBytes, roles[6]!),
      this.spanAt(layer, expert, slotBytes, roles[7]!),
      this.spanAt(layer, expert, slotBytes, roles[8]!),
    );
  }

  /** Where a span is in its segment; 0 for one that is not there. */
  private spanAt(layer: number, expert: number, slotBytes: number, span: number): number {
    return span < 0 ? 0 : slotBytes + this.parts.layout.spanSlotBytes(layer, expert, span);
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
    this.ledger.lost(slot);
    if (failure.kind === FAILURE_ABANDONED) this.counters.prefetchesDropped++;
    else if (wantedAt >= 0 && this.demandedIn[slot] === this.step) {
      throw this.parts.readError(failure, layer, expert);
    } else this.counters.prefetchFailures++;
    if (wantedAt < 0) return;
    // Begun for something else, dropped or failed there, and wanted now: read it anew, and then fail loudly.
    slab.unpin(slot);
    this.slotOf[wantedAt] = NONE;
    this.nextMiss = Math.min(this.nextMiss, wantedAt);
  }

  /** Sleeps until a load has ended. False when the pipeline is stopping. */
  private waitForArrival(layer: number): boolean {
    const { clock } = this;
    const { backend, tickets, control, readTimeoutMillis } = this.parts;
    backend.flush();
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
    this.counters.waitMicros += (clock.nowMillis() - startMillis) * 1000;
    this.trace.lap(TRACE.waitRead, layer, 0, 0, 0);
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
