/**
 * The routed experts of one layer: from the router's choice to every expert's output.
 *
 * Order of work: issue the reads of what is missing, run the shared expert and the hits while they are under way, then
 * each arrival as it comes; hints are taken in between, and a chunk asks for its next layer (prefetch-union.ts). The order
 * in which experts are computed does not touch the result: each output goes to its own buffer and the backend sums them in
 * the router's order.
 *
 * It works with any slab that holds at least one slot per class: what does not fit now is admitted when an expert that
 * has been computed gives its slot back. That is also how a prefill chunk, whose union of experts may be larger than the
 * whole slab, streams through it; chunk-cache.ts says who stays.
 *
 * A GPU reads a slot after `expert` has returned, so its slots stay pinned until the next layer's routes are there, which
 * is behind all of this layer's work, or until `finish` has waited because a slot is needed now.
 *
 * Invariant: an expert is computed only from a slot whose every chunk has arrived. A failed read ends the layer with a
 * typed error; nothing is skipped.
 */
import type { Backend } from '../native.ts';
import { NONE } from '../pipeline/eviction.ts';
import { SPANS } from '../pipeline/expert-layout.ts';
import { LANE_DEMAND } from '../pipeline/fetch-queue.ts';
import { SLOT_READY } from '../pipeline/slab.ts';
import { NO_TRACER, TRACE, type Tracer } from '../pipeline/trace.ts';
import { ChunkCache } from './chunk-cache.ts';
import { type Clock, SYSTEM_CLOCK } from './clock.ts';
import { type ExpertCounters, newCounters } from './expert-counters.ts';
import { ExpertLoads, type LoadParts } from './expert-loads.ts';
import { LayerStep } from './layer-step.ts';
import { PrefetchController } from './prefetch-controller.ts';
import { HintedReads } from './prefetch-hints.ts';
import { PrefetchLedger, READ_DEMAND } from './prefetch-ledger.ts';
import { UnionReads } from './prefetch-union.ts';
import { RoutingCounts } from './routing-counts.ts';

/** The part of the backend that this file drives. */
export type ExpertBackend = Pick<Backend, 'shared' | 'expert' | 'flush' | 'finish'>;

export interface SchedulerParts extends LoadParts {
  readonly backend: ExpertBackend;
  /** Whether the backend still reads a slot when `expert` has returned. */
  readonly readsBehind: boolean;
  readonly layers: number;
  readonly expertsPerToken: number;
  /** Whether a chunk of a prompt reads its next layer ahead. */
  readonly readsUnion: boolean;
  /** How many hints are read. Without one, as many as a token has experts. */
  readonly controller?: PrefetchController;
  readonly clock?: Clock;
  /** Without one, nothing is recorded. */
  readonly trace?: Tracer;
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
  private readonly trace: Tracer;
  private readonly clock: Clock;
  private readonly ledger: PrefetchLedger;
  private readonly step: LayerStep;
  private readonly loads: ExpertLoads;
  private readonly hints: HintedReads;
  private readonly counts: RoutingCounts;
  private readonly cache: ChunkCache;
  private readonly union: UnionReads;
  private hasAsked = false;
  /** Slots that the backend may still be reading, and (slots) whether they are spent then. */
  private readonly behind: Int32Array;
  private readonly spentBehind: Uint8Array;
  private behindCount = 0;

  constructor(parts: SchedulerParts) {
    this.parts = parts;
    this.trace = parts.trace ?? NO_TRACER;
    this.controller = parts.controller ?? new PrefetchController('fixed', parts.expertsPerToken);
    const slots = parts.places.length;
    this.ledger = new PrefetchLedger(this.controller, slots, parts.layers * parts.experts);
    this.step = new LayerStep(parts.experts, parts.expertsPerToken);
    this.clock = parts.clock ?? SYSTEM_CLOCK;
    this.loads = new ExpertLoads(parts, this.step, this.ledger, this.clock, this.trace);
    this.hints = new HintedReads(parts, this.step, this.loads, this.ledger, this.controller);
    this.counts = new RoutingCounts(parts.layers, parts.experts);
    this.cache = new ChunkCache(this.counts, parts.experts);
    this.union = new UnionReads(parts, slots, this.step, this.loads, this.counts);
    this.behind = new Int32Array(slots);
    this.spentBehind = new Uint8Array(slots);
  }

  get counters(): ExpertCounters {
    return this.ledger.counters;
  }

  /** A new run starts new counters. */
  beginRun(): void {
    this.ledger.counters = newCounters();
    this.controller.beginRun(this.clock.nowMillis());
  }

  /**
   * Runs shared and routed experts of a layer. `ids` is (rows, top-k). `nextLayer` is the one that follows for `nextRows`
   * rows, NONE when that is not known. False when the pipeline is stopping.
   */
  runLayer(layer: number, ids: Int32Array, idCount: number, nextLayer = NONE, nextRows = 0): boolean {
    const { trace, step, counters } = this;
    const { backend } = this.parts;
    this.hasAsked = false;
    this.releaseBehind();
    this.begin(layer, ids, idCount, nextLayer, nextRows);
    try {
      this.pinPresent();
      this.union.release();
      this.loads.noteDelays();
      if (!this.admitMissing()) return false;
      this.ask(false);
      trace.lap(TRACE.admit, layer, step.count, counters.hits, counters.lateHits);
      backend.shared(layer);
      this.ask(false);
      trace.lap(TRACE.shared, layer, 0, 0, 0);
      this.readAhead();
      const computed = this.computeAll();
      this.ask(true);
      return computed;
    } finally {
      this.unpinRest();
      step.isOpen = false;
      this.controller.endStep(this.clock.nowMillis(), counters.waitMicros);
    }
  }

  /** Whether hints can become reads. A chunk that reads its next layer ahead knows better what it wants. */
  get wantsHints(): boolean {
    return this.controller.allowed > 0 && !this.union.isReading;
  }

  /** A predictor's hint; see `HintedReads.take`. */
  prefetch(layer: number, expert: number): void {
    this.hints.take(layer, expert, this.wantsHints);
  }

  /** Gives back the slots that the backend has read. Only when it is known to have ended. */
  releaseBehind(): void {
    const { slab } = this.parts;
    for (let index = 0; index < this.behindCount; index++) {
      const slot = this.behind[index]!;
      slab.unpin(slot, this.spentBehind[slot] === 1);
    }
    this.behindCount = 0;
  }

  /** What the router has chosen, and what is concluded from it. */
  private begin(layer: number, ids: Int32Array, idCount: number, nextLayer: number, nextRows: number): void {
    const { step, counts } = this;
    step.begin(layer, ids, idCount);
    this.counters.lookups += step.count;
    counts.note(layer, ids, idCount, step.rows);
    this.cache.begin(layer, step.experts, step.count, step.rows, this.parts.slab);
    this.hints.routed();
    this.union.begin(nextLayer, nextRows);
    this.loads.settle();
    this.loads.dropUnwanted();
  }

  private pinPresent(): void {
    const { slab } = this.parts;
    const { step } = this;
    for (let index = 0; index < step.count; index++) {
      const expert = step.experts[index]!;
      slab.note(step.layer, expert);
      const slot = slab.find(step.layer, expert);
      if (slot === NONE) continue;
      slab.pin(slot);
      step.slots[index] = slot;
      if (slab.stateOf(slot) === SLOT_READY) {
        this.counters.hits++;
        this.ledger.wanted(slot, 0);
      } else {
        this.counters.lateHits++;
        this.loads.promote(slot, step.layer, expert);
      }
    }
  }

  /** Issues the reads of missing experts as far as slots and the queue go. False when the pipeline is stopping. */
  private admitMissing(): boolean {
    const { slab } = this.parts;
    const { step, loads } = this;
    for (; step.nextMiss < step.count; step.nextMiss++) {
      const index = step.nextMiss;
      const expert = step.experts[index]!;
      if (step.slots[index] !== NONE || step.done[index] === 1) continue;
      if (!this.mayAdmit() && !this.waitForBackend()) return true;
      if (this.queueIsFull(expert)) return true;
      const slot = loads.issue(step.layer, expert, READ_DEMAND);
      if (slot === NONE) return false;
      slab.pin(slot);
      step.slots[index] = slot;
      this.counters.misses++;
    }
    return true;
  }

  /** Whether there is a slot, and in a chunk that streams one of its window; nothing else would ever free one of these. */
  private mayAdmit(): boolean {
    const { slab } = this.parts;
    const { layer } = this.step;
    if (!slab.canAdmit(layer)) return false;
    return !this.cache.isStreaming || slab.hasWindow(layer) || (this.loads.count === 0 && !this.anyReady());
  }

  /**
   * Whether to compute instead of waiting for room in the queue. A prefill chunk may miss 400 experts where the queue
   * holds 170: waiting here would leave the processor idle while the first 230 are read. Without a read under way
   * there is nothing to come back for, so then it waits.
   */
  private queueIsFull(expert: number): boolean {
    return this.loads.count > 0 && !this.loads.hasRoom(this.step.layer, expert, READ_DEMAND);
  }

  /** Whether a slot for this layer came free by waiting for the backend. */
  private waitForBackend(): boolean {
    if (this.behindCount === 0) return false;
    this.parts.backend.finish();
    this.releaseBehind();
    return this.mayAdmit();
  }

  /** Between experts: what may be wanted soon, by the predictors and by the chunk itself. */
  private readAhead(): void {
    this.takeHints();
    this.union.fill();
    this.trace.lap(TRACE.hints, this.step.layer, 0, 0, 0);
  }

  private computeAll(): boolean {
    const { step, loads } = this;
    let left = step.count;
    while (left > 0) {
      const computed = this.computeReady();
      left -= computed;
      if (left === 0) break;
      loads.settle();
      if (!this.admitMissing()) return false;
      const sleeps = computed === 0 && !this.anyReady();
      this.ask(sleeps);
      this.takeHints();
      this.trace.lap(TRACE.schedule, step.layer, 0, 0, 0);
      if (!sleeps) continue;
      this.parts.backend.flush();
      if (!loads.waitForArrival()) return false;
    }
    return true;
  }

  /**
   * Asks for hints when the readers have begun the last reads of this layer: before it sleeps for them, with all in the
   * stream that could be computed, or else as soon as the disk has nothing to do.
   */
  private ask(sleeps: boolean): void {
    const { queue } = this.parts;
    if (this.hasAsked || !this.step.allAdmitted || queue.waiting(LANE_DEMAND) > 0) return;
    if (!sleeps && queue.underWay(LANE_DEMAND) > 0) return;
    this.hasAsked = true;
    this.askAhead(this.step.layer);
  }

  /** Computes wanted experts whose bytes are here, a few at a time while others wait for a slot; returns how many. */
  private computeReady(): number {
    const { step } = this;
    const { slab } = this.parts;
    let computed = 0;
    for (let index = 0; index < step.count; index++) {
      if (computed === COMPUTED_AT_ONCE && !step.allAdmitted) return computed;
      const slot = step.slots[index]!;
      if (slot === NONE || slab.stateOf(slot) !== SLOT_READY) continue;
      const expert = step.experts[index]!;
      this.computeExpert(step.layer, expert, slot);
      this.trace.lap(TRACE.expert, step.layer, expert, 0, 0);
      this.giveBack(slot, this.cache.isSpent(expert));
      step.slots[index] = NONE;
      step.done[index] = 1;
      computed++;
      this.ask(false);
      this.readAhead();
    }
    return computed;
  }

  /** An expert has been given to the backend. */
  private giveBack(slot: number, spent: boolean): void {
    if (!this.parts.readsBehind) {
      this.parts.slab.unpin(slot, spent);
      return;
    }
    this.spentBehind[slot] = spent ? 1 : 0;
    this.behind[this.behindCount++] = slot;
  }

  private computeExpert(layer: number, expert: number, slot: number): void {
    const { backend, layout, places } = this.parts;
    const { segment, bytes } = places[slot]!;
    const roles = layout.rolesOf(layer);
    if (roles !== undefined) {
      this.computeSpans(layer, expert, segment, bytes, roles);
      return;
    }
    backend.expert(
      layer,
      expert,
      segment,
      bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('gate')),
      bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('up')),
      bytes + layout.spanSlotBytes(layer, expert, SPANS.indexOf('down')),
    );
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
    const { step } = this;
    for (let index = 0; index < step.count; index++) {
      const slot = step.slots[index]!;
      if (slot !== NONE && this.parts.slab.stateOf(slot) === SLOT_READY) return true;
    }
    return false;
  }

  /** A layer that ends early, by an error or a stop, must leave no pin behind. */
  private unpinRest(): void {
    const { step } = this;
    for (let index = 0; index < step.count; index++) {
      const slot = step.slots[index]!;
      if (slot !== NONE) this.parts.slab.unpin(slot);
      step.slots[index] = NONE;
    }
  }
}
