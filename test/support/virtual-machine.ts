/**
 * The real queue, tickets, slab, scheduler, controller and panel on a machine whose time is counted, not measured.
 *
 * The disk takes requests from the real queue as permits allow. A read can be transferred `latencyMicros` after it began;
 * one is transferred after another, at `bytesPerSecond`. Computing takes the time it is told. Nothing sleeps, and every
 * run of the same trace takes the same time.
 */
import { ControlBlock } from '../../dist/pipeline/control.js';
import type { Policy } from '../../dist/pipeline/eviction.js';
import { ExpertLayout, type LayerSource, slotBytesOf } from '../../dist/pipeline/expert-layout.js';
import {
  emptyRequest,
  FetchQueue,
  LANE_DEMAND,
  LANE_PREFETCH,
  type ReadRequest,
} from '../../dist/pipeline/fetch-queue.js';
import { placeSlots, Slab, slotCount } from '../../dist/pipeline/slab.js';
import { readError, Tickets } from '../../dist/pipeline/tickets.js';
import { ExpertScheduler } from '../../dist/workers/expert-scheduler.js';
import { Panel } from '../../dist/workers/predictors/panel.js';
import type { Predictor, Route, Votes } from '../../dist/workers/predictors/predictor.js';
import { PrefetchController } from '../../dist/workers/prefetch-controller.js';

export interface MachineOptions {
  readonly layers: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly slots: number;
  readonly expertBytes: number;
  /** Whether an expert is one stretch of a file, as packed, or three. */
  readonly packed: boolean;
  readonly latencyMicros: number;
  readonly bytesPerSecond: number;
  /** Of one layer: before the router, the shared expert, and each expert. */
  readonly mixMicros: number;
  readonly sharedMicros: number;
  readonly expertMicros: number;
  readonly mostUnderWay: number;
  readonly mode: 'auto' | 'fixed' | 'none';
  /** Whether a chunk reads its next layer ahead. Default no. */
  readonly readsUnion?: boolean;
  readonly policy?: Policy;
  /** Hints come so long after the scheduler has asked for them. Without it, at once when the layer is routed. */
  readonly predictorMicros?: number;
}

interface Flight {
  readonly request: ReadRequest;
  readonly endMicros: number;
}

/** (layer) -> the experts of its next step, in the router's order. */
export type Trace = readonly (readonly number[][])[];

export class VirtualMachine {
  nowMicros = 0;
  computeMicros = 0;
  /** The most bytes of prefetches that the disk still had to transfer when a demand was taken from the queue. */
  prefetchBytesAheadMost = 0;
  /** Prefetch chunks taken while a demand was queued or under way. */
  outOfTurn = 0;
  readonly slab: Slab;
  readonly queue: FetchQueue;
  readonly scheduler: ExpertScheduler;
  readonly chunkBytes: number;
  readonly controller: PrefetchController;
  private readonly options: MachineOptions;
  private readonly tickets: Tickets;
  private readonly panel: Panel;
  private readonly route: Route;
  private flights: Flight[] = [];
  private linkFreeMicros = 0;
  private hints: { layer: number; expert: number; fromMicros: number }[] = [];

  constructor(options: MachineOptions, predictors: readonly Predictor[]) {
    this.options = options;
    const { layers, experts, expertsPerToken, slots, mode } = options;
    const sources = sourcesOf(options);
    const shape = {
      layers,
      experts,
      classes: [{ slotBytes: slotBytesOf(sources[0]!), slots, firstSlot: 0 }],
      classOfLayer: Array.from({ length: layers }, () => 0),
    };
    this.chunkBytes = options.packed ? options.expertBytes : options.expertBytes / 3;
    this.slab = new Slab(shape, options.policy ?? 'lru');
    this.queue = FetchQueue.create(512, options.mostUnderWay);
    this.tickets = Tickets.create(slotCount(shape));
    this.controller = new PrefetchController(
      mode === 'auto' ? 'auto' : 'fixed',
      mode === 'none' ? 0 : expertsPerToken,
    );
    this.panel = new Panel({ names: [], shape: { layers, experts, expertsPerToken } }, predictors);
    this.route = { layer: 0, rows: 1, count: 0, ids: new Int32Array(experts), first: 0 };
    this.scheduler = new ExpertScheduler({
      backend: {
        shared: () => this.compute(options.sharedMicros),
        expert: () => this.compute(options.expertMicros),
        flush: () => {},
        finish: () => {},
      },
      readsBehind: false,
      slab: this.slab,
      places: placeSlots(shape).places,
      firstSegment: 0,
      layout: new ExpertLayout(sources, [Number.MAX_SAFE_INTEGER], 1),
      queue: this.queue,
      tickets: this.tickets,
      control: new ControlBlock(),
      layers,
      experts,
      expertsPerToken,
      readsUnion: options.readsUnion ?? false,
      readTimeoutMillis: 1e9,
      controller: this.controller,
      clock: {
        nowMillis: () => this.nowMicros / 1000,
        sleep: () => this.sleepUntilRead(),
      },
      readError: (failure) => readError(failure, 'virtual disk', 'an expert', String),
    });
    this.scheduler.takeHints = () => {
      const given = this.hints.filter(({ fromMicros }) => fromMicros <= this.nowMicros);
      this.hints = this.hints.filter(({ fromMicros }) => fromMicros > this.nowMicros);
      for (const { layer, expert } of given) this.scheduler.prefetch(layer, expert);
    };
    if (mode !== 'none' && options.predictorMicros !== undefined)
      this.scheduler.askAhead = (layer) => this.giveHints(layer);
  }

  /** Runs every token of the trace; returns the time it took. */
  run(trace: Trace): number {
    const began = this.nowMicros;
    for (const token of trace) for (const [layer, experts] of token.entries()) this.layer(layer, experts);
    return this.nowMicros - began;
  }

  /** What a layer computes before its router has chosen. */
  mix(): void {
    this.compute(this.options.mixMicros);
  }

  layer(layer: number, experts: readonly number[]): void {
    this.mix();
    if (this.options.mode !== 'none') this.predict(layer, experts);
    this.scheduler.runLayer(layer, Int32Array.from(experts), experts.length);
    this.scheduler.takeHints();
  }

  /** Lets time pass without computing. */
  idle(micros: number): void {
    this.advance(micros);
  }

  private predict(layer: number, experts: readonly number[]): void {
    this.route.layer = layer;
    this.route.count = experts.length;
    this.route.ids.set(experts);
    this.panel.observe(this.route, undefined);
    if (this.options.predictorMicros === undefined) this.giveHints(layer);
  }

  private giveHints(layer: number): void {
    const named = this.panel.predict(layer, 1, this.route.count);
    const target = (layer + 1) % this.options.layers;
    const fromMicros = this.nowMicros + (this.options.predictorMicros ?? 0);
    for (let rank = 0; rank < named.count; rank++)
      this.hints.push({ layer: target, expert: named.experts[rank]!, fromMicros });
  }

  private compute(micros: number): void {
    this.computeMicros += micros;
    this.advance(micros);
  }

  private advance(micros: number): void {
    const untilMicros = this.nowMicros + micros;
    for (;;) {
      this.takeRequests();
      const next = this.flights[0];
      if (next === undefined || next.endMicros > untilMicros) break;
      this.land();
    }
    this.nowMicros = untilMicros;
  }

  private sleepUntilRead(): void {
    this.takeRequests();
    if (this.flights.length === 0) throw new Error('compute sleeps and the disk has nothing to do');
    this.land();
  }

  private takeRequests(): void {
    const request = emptyRequest();
    while (this.queue.tryPop(request)) {
      if (!this.tickets.claim(request.ticket, request.claim)) {
        this.queue.finish(request);
        continue;
      }
      this.watch(request);
      const { latencyMicros, bytesPerSecond } = this.options;
      const begin = Math.max(this.linkFreeMicros, this.nowMicros + latencyMicros);
      const endMicros = begin + (request.requiredBytes / bytesPerSecond) * 1e6;
      this.linkFreeMicros = endMicros;
      this.flights.push({ request: { ...request }, endMicros });
    }
  }

  private watch({ lane }: ReadRequest): void {
    if (lane === LANE_PREFETCH) {
      const demands = this.queue.waiting(LANE_DEMAND) + this.queue.underWay(LANE_DEMAND);
      if (demands > 0) this.outOfTurn++;
      return;
    }
    const ahead = this.flights
      .filter((flight) => flight.request.lane === LANE_PREFETCH)
      .reduce((sum, flight) => sum + flight.request.requiredBytes, 0);
    this.prefetchBytesAheadMost = Math.max(this.prefetchBytesAheadMost, ahead);
  }

  private land(): void {
    const flight = this.flights.shift()!;
    this.nowMicros = Math.max(this.nowMicros, flight.endMicros);
    this.tickets.completeChunk(flight.request.ticket);
    this.queue.finish(flight.request);
  }
}

function sourcesOf({ layers, experts, expertBytes, packed }: MachineOptions): LayerSource[] {
  const matrixBytes = expertBytes / 3;
  return Array.from({ length: layers }, (_, layer) => {
    const base = layer * experts * expertBytes * 2;
    const spans = [0, 1, 2].map((span) => ({
      file: 0,
      byteLength: matrixBytes,
      strideBytes: packed ? expertBytes : matrixBytes,
      // Gaps keep the matrices of a plain file apart.
      offsetBytes: base + span * (packed ? matrixBytes : experts * matrixBytes + 4096),
    }));
    return { spans: spans as unknown as LayerSource['spans'] };
  });
}

/** Tokens whose experts are drawn at random, some more often than others. */
export function randomTrace(options: MachineOptions, tokens: number, seed: number, among: number): Trace {
  let state = seed;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  return Array.from({ length: tokens }, () =>
    Array.from({ length: options.layers }, () => {
      const chosen = new Set<number>();
      while (chosen.size < options.expertsPerToken) chosen.add(Math.floor(next() ** 1.5 * among));
      return [...chosen];
    }),
  );
}

/** Knows the trace. */
export class AlwaysRight implements Predictor {
  readonly name = 'temporal';
  private readonly order: readonly (readonly number[])[];
  private at = 0;

  constructor(trace: Trace) {
    this.order = trace.flat();
  }

  observe(): void {
    this.at++;
  }

  vote(_layer: number, _ahead: number, votes: Votes): void {
    this.order[this.at]?.forEach((expert, rank) => {
      votes.add(expert, 0.9 - rank / 1000);
    });
  }
}

/** Knows the trace as well as `lookahead`: each rank is right so often, and nothing is known of the next token. */
export class MostlyRight implements Predictor {
  readonly name = 'lookahead';
  private readonly trace: Trace;
  private readonly experts: number;
  private readonly shares: readonly number[];
  private at = 0;
  private state = 9;

  constructor(trace: Trace, experts: number, shares: readonly number[]) {
    this.trace = trace;
    this.experts = experts;
    this.shares = shares;
  }

  observe(): void {
    this.at++;
  }

  vote(layer: number, _ahead: number, votes: Votes): void {
    const token = this.trace[0]!;
    const wanted = layer === 0 ? undefined : this.trace[Math.floor(this.at / token.length)]?.[layer];
    if (wanted === undefined) return;
    let named = 0;
    this.shares.forEach((share, rank) => {
      const isRight = this.next() < share && named < wanted.length;
      votes.add(isRight ? wanted[named++]! : this.wrong(wanted), 0.9 - rank / 1000);
    });
  }

  private wrong(wanted: readonly number[]): number {
    for (;;) {
      const expert = Math.floor(this.next() * this.experts);
      if (!wanted.includes(expert)) return expert;
    }
  }

  private next(): number {
    this.state = (Math.imul(this.state, 1664525) + 1013904223) >>> 0;
    return this.state / 2 ** 32;
  }
}

/** Names experts that nobody ever wants: those from `from` on. */
export class AlwaysWrong implements Predictor {
  readonly name = 'temporal';
  private readonly from: number;
  private readonly experts: number;
  private next = 0;

  constructor(from: number, experts: number) {
    this.from = from;
    this.experts = experts;
  }

  observe(): void {}

  vote(_layer: number, _ahead: number, votes: Votes): void {
    for (let rank = 0; rank < 8; rank++) {
      votes.add(this.from + (this.next++ % (this.experts - this.from)), 0.9 - rank / 1000);
    }
  }
}
