/**
 * Replays a routing trace through the real slab, eviction policies, predictors and controller, without a model.
 *
 * Time is a model of three numbers: a layer computes for `computeMicros` per row, half of it before its router has chosen
 * and half spread over its experts; the disk reads one expert after another at `bytesPerSecond`; demands go before
 * prefetches and interrupt them without loss. Hits are computed first, then experts in the order of their arrival; what is
 * left over is the stall. Without a disk, prefetches arrive at once and no time is counted. A prompt's chunk streams through
 * the window of the slab as in the engine (src/workers/chunk-cache.ts).
 */
import { NONE, type Policy } from '../pipeline/eviction.ts';
import type { RoutingTrace } from '../pipeline/routing-trace.ts';
import { SLOT_READY, Slab, type SlabShape, slotCount } from '../pipeline/slab.ts';
import { ChunkCache } from '../workers/chunk-cache.ts';
import { type ExpertCounters, newCounters } from '../workers/expert-counters.ts';
import type { Panel } from '../workers/predictors/panel.ts';
import type { Route } from '../workers/predictors/predictor.ts';
import { type ControllerReport, PrefetchController } from '../workers/prefetch-controller.ts';
import { PrefetchLedger, READ_DEMAND, READ_HINT } from '../workers/prefetch-ledger.ts';
import { RoutingCounts } from '../workers/routing-counts.ts';
import { AnswerSteps } from './belady.ts';
import { WantedExperts } from './wanted.ts';

export interface DiskModel {
  readonly bytesPerSecond: number;
  /** Of one layer for one row. */
  readonly computeMicros: number;
}

/** Who predicts in a replay, and how many of the hints are read. */
export interface ReplayPrediction {
  readonly panel: Pick<Panel, 'observe' | 'predict'>;
  readonly auto: boolean;
  readonly depth: number;
}

export interface ReplayOptions {
  readonly shape: SlabShape;
  readonly policy: Policy;
  readonly prediction: ReplayPrediction | undefined;
  readonly disk: DiskModel | undefined;
}

export interface ReplayResult {
  readonly counters: ExpertCounters;
  readonly controller: ControllerReport;
  /** Of the answer alone: once a prompt of many rows has passed, the cache is warm, and this is what decode meets. */
  readonly answerLookups: number;
  readonly answerHits: number;
  readonly stallMicros: number;
  readonly computeMicros: number;
}

export class Replay {
  private readonly trace: RoutingTrace;
  private readonly options: ReplayOptions;
  private readonly slab: Slab;
  private readonly controller: PrefetchController;
  private readonly ledger: PrefetchLedger;
  private readonly wanted: WantedExperts;
  private readonly counts: RoutingCounts;
  private readonly cache: ChunkCache;
  private readonly route: Route;
  private readonly counters = newCounters();
  /** Prefetches that the disk has not finished, oldest first, and the bytes that each still needs. */
  private readonly ahead: number[] = [];
  private readonly bytesLeft: Float64Array;
  private readonly slotOf: Int32Array;
  /** Of the slots in `slotOf`, how many have been given back. */
  private unpinned = 0;
  private readonly missing: number[] = [];
  private nowMicros = 0;
  private diskFreeMicros = 0;
  private stallMicros = 0;
  private computeMicros = 0;

  constructor(trace: RoutingTrace, options: ReplayOptions) {
    const { shape, policy, prediction } = options;
    const { expertsPerToken } = trace.header;
    this.trace = trace;
    this.options = options;
    this.slab = new Slab(shape, policy);
    const most = prediction === undefined ? 0 : expertsPerToken;
    this.controller = new PrefetchController(prediction?.auto === true ? 'auto' : 'fixed', most);
    this.ledger = new PrefetchLedger(this.controller, slotCount(shape), shape.layers * shape.experts);
    this.ledger.counters = this.counters;
    this.wanted = new WantedExperts(trace);
    this.counts = new RoutingCounts(shape.layers, shape.experts);
    this.cache = new ChunkCache(this.counts, shape.experts);
    this.route = { layer: 0, rows: 0, count: 0, ids: this.wanted.heard, first: 0 };
    this.bytesLeft = new Float64Array(slotCount(shape));
    this.slotOf = new Int32Array(shape.experts);
  }

  run(): ReplayResult {
    const { trace, counters, controller } = this;
    const answers = new AnswerSteps(trace);
    let answerLookups = 0;
    let answerHits = 0;
    for (let step = 0; step < trace.steps; step++) {
      const hitsBefore = counters.hits;
      this.step(step);
      if (!answers.isAnswer(step)) continue;
      answerLookups += this.wanted.count;
      answerHits += counters.hits - hitsBefore;
    }
    const { stallMicros, computeMicros } = this;
    counters.waitMicros = stallMicros;
    return {
      counters,
      controller: controller.report(),
      answerLookups,
      answerHits,
      stallMicros,
      computeMicros,
    };
  }

  private step(step: number): void {
    const { wanted, counters, options, trace } = this;
    const layer = trace.stepLayer[step]!;
    const layerMicros = (options.disk?.computeMicros ?? 0) * trace.stepRows[step]!;
    this.computeMicros += layerMicros;
    this.nowMicros += layerMicros / 2;
    this.readAhead(this.nowMicros);
    wanted.read(step);
    counters.lookups += wanted.count;
    this.count(step, layer);
    this.dropUnwanted(layer);
    const expertMicros = layerMicros / 2 / wanted.count;
    this.pinPresent(layer);
    const hits = wanted.count - this.missing.length;
    if (!this.cache.isStreaming) this.unpinUntil(hits);
    this.nowMicros += hits * expertMicros;
    this.readMissing(layer, expertMicros);
    if (options.prediction !== undefined) this.predict(step, layer, options.prediction);
    this.controller.endStep(this.nowMicros / 1000, this.stallMicros);
  }

  private count(step: number, layer: number): void {
    const { trace, wanted } = this;
    const [first, last] = [trace.stepFirst[step]!, trace.stepFirst[step + 1]!];
    const rows = trace.stepRows[step]!;
    this.counts.note(layer, trace.ids.subarray(first, last), last - first, rows);
    this.cache.begin(layer, wanted.experts, wanted.count, rows, this.slab);
  }

  /** Lets the disk work on prefetches until `untilMicros`. */
  private readAhead(untilMicros: number): void {
    const { disk } = this.options;
    while (this.ahead.length > 0) {
      const slot = this.ahead[0]!;
      const needMicros = disk === undefined ? 0 : (this.bytesLeft[slot]! / disk.bytesPerSecond) * 1e6;
      const haveMicros = untilMicros - this.diskFreeMicros;
      if (needMicros > haveMicros) {
        const share = haveMicros > 0 ? haveMicros / needMicros : 0;
        this.bytesLeft[slot] = this.bytesLeft[slot]! * (1 - share);
        break;
      }
      this.diskFreeMicros += needMicros;
      this.bytesLeft[slot] = 0;
      this.slab.markReady(slot);
      this.ahead.shift();
    }
    this.diskFreeMicros = Math.max(this.diskFreeMicros, untilMicros);
  }

  private dropUnwanted(layer: number): void {
    const { slab, ahead } = this;
    for (let index = ahead.length - 1; index >= 0; index--) {
      const slot = ahead[index]!;
      if (slab.layerOf(slot) !== layer || this.wanted.has(slab.expertOf(slot))) continue;
      this.ledger.takenBack(slot, this.bytesLeft[slot]!);
      this.counters.prefetchesDropped++;
      slab.markFailed(slot);
      ahead.splice(index, 1);
    }
  }

  /** Pins what is here, in the order of the router; late prefetches and absent experts go to `missing`. */
  private pinPresent(layer: number): void {
    const { slab, wanted, counters, missing } = this;
    missing.length = 0;
    this.unpinned = 0;
    let hits = 0;
    for (let index = 0; index < wanted.count; index++) {
      const expert = wanted.experts[index]!;
      slab.note(layer, expert);
      const slot = slab.find(layer, expert);
      if (slot !== NONE && slab.stateOf(slot) === SLOT_READY) {
        slab.pin(slot);
        this.slotOf[hits++] = slot;
        this.ledger.wanted(slot, 0);
        counters.hits++;
      } else {
        missing.push(expert);
        if (slot === NONE) continue;
        counters.lateHits++;
        this.ledger.wanted(slot, this.bytesLeft[slot]!);
        this.ahead.splice(this.ahead.indexOf(slot), 1);
      }
    }
  }

  /** The first so many of the slots that this step has pinned have been computed. */
  private unpinUntil(count: number): void {
    const { slab, cache } = this;
    for (; this.unpinned < count; this.unpinned++) {
      const slot = this.slotOf[this.unpinned]!;
      slab.unpin(slot, cache.isSpent(slab.expertOf(slot)));
    }
  }

  /** Reads one missing expert after another, computes each when it is here. */
  private readMissing(layer: number, expertMicros: number): void {
    const { slab, counters, missing } = this;
    const { disk } = this.options;
    const bytes = this.trace.header.expertBytes[layer]!;
    const first = this.nowMicros - expertMicros * (this.wanted.count - missing.length);
    let arrivalMicros = Math.max(first, this.diskFreeMicros);
    let pinned = this.wanted.count - missing.length;
    for (const expert of missing) {
      let slot = slab.find(layer, expert);
      let readBytes = bytes;
      if (slot === NONE) {
        counters.misses++;
        this.makeRoom(layer, pinned);
        slot = slab.admit(layer, expert);
        this.ledger.admitted(
          slot,
          layer * this.options.shape.experts + expert,
          slab.evictedKey,
          READ_DEMAND,
          bytes,
        );
      } else {
        readBytes = this.bytesLeft[slot]!;
        this.bytesLeft[slot] = 0;
      }
      if (this.cache.isStreaming) {
        slab.pin(slot);
        this.slotOf[pinned++] = slot;
      }
      slab.markReady(slot);
      if (disk === undefined) continue;
      arrivalMicros += (readBytes / disk.bytesPerSecond) * 1e6;
      this.stallMicros += Math.max(0, arrivalMicros - this.nowMicros);
      this.nowMicros = Math.max(this.nowMicros, arrivalMicros) + expertMicros;
    }
    this.unpinUntil(pinned);
    if (missing.length > 0) this.diskFreeMicros = Math.max(this.diskFreeMicros, arrivalMicros);
  }

  /** What a chunk streams through the window is given back only when the window is full. */
  private makeRoom(layer: number, pinned: number): void {
    if (!this.cache.isStreaming) return;
    while (!this.slab.hasWindow(layer) && this.unpinned < pinned) this.unpinUntil(this.unpinned + 1);
  }

  private predict(step: number, layer: number, { panel, depth }: ReplayPrediction): void {
    const { route, wanted, trace } = this;
    const { layers, experts, expertsPerToken } = trace.header;
    wanted.hear(step);
    route.layer = layer;
    route.rows = trace.stepRows[step]!;
    route.count = wanted.count;
    panel.observe(route, undefined);
    const most = route.rows === 1 ? expertsPerToken : experts;
    const limit = Math.ceil(this.controller.allowed * Math.max(1, wanted.count / expertsPerToken));
    for (let ahead = 1; ahead <= depth; ahead++) {
      const hints = panel.predict(layer, ahead, most);
      let accepted = 0;
      for (let rank = 0; rank < hints.count; rank++) {
        if (this.prefetch((layer + ahead) % layers, hints.experts[rank]!, accepted < limit)) accepted++;
      }
    }
    if (this.options.disk === undefined) this.readAhead(0);
  }

  private prefetch(layer: number, expert: number, withinLimit: boolean): boolean {
    const { slab, counters, trace } = this;
    counters.hints++;
    if (slab.find(layer, expert) !== NONE) counters.hintsPresent++;
    else if (!withinLimit) counters.hintsOverLimit++;
    else if (slab.evictable(layer) <= 2 * trace.header.expertsPerToken) counters.hintsNoRoom++;
    else {
      const bytes = trace.header.expertBytes[layer]!;
      const slot = slab.admit(layer, expert);
      this.ledger.admitted(slot, layer * trace.header.experts + expert, slab.evictedKey, READ_HINT, bytes);
      this.bytesLeft[slot] = bytes;
      this.ahead.push(slot);
      return true;
    }
    return false;
  }
}

export function replay(trace: RoutingTrace, options: ReplayOptions): ReplayResult {
  return new Replay(trace, options).run();
}
