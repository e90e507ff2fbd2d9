/**
 * The compute stage: drives the backend layer by layer and decides what the slab holds.
 *
 * One run is one sequence: first the prompt in chunks of up to `maxRows` rows, then a row per sampled token. It is the
 * only producer of reads, so it alone knows what is in the slab, and nothing there needs a lock.
 */
import { invariant } from '../errors.ts';
import type { VectorChange } from '../model/places.ts';
import {
  type Backend,
  type BackendConfig,
  type BackendName,
  backendError,
  type IoAddon,
  loadBackend,
  loadIo,
  ROW_POSITION,
  ROW_SEQUENCE,
  ROW_TOKEN,
  ROW_WORDS,
} from '../native.ts';
import { ControlBlock } from '../pipeline/control.ts';
import type { Policy } from '../pipeline/eviction.ts';
import { ExpertLayout, type LayerSource } from '../pipeline/expert-layout.ts';
import { FetchQueue, type FetchQueueHandle } from '../pipeline/fetch-queue.ts';
import { END_OF_TOKENS, HINT_EXPERT, HINT_LAYER } from '../pipeline/messages.ts';
import type { ResidentPart } from '../pipeline/residents.ts';
import { EMPTY, type RingHandle, SpscRing, STOPPED, TIMED_OUT } from '../pipeline/ring.ts';
import { placeSlots, Slab, type SlabShape } from '../pipeline/slab.ts';
import { readError, Tickets } from '../pipeline/tickets.ts';
import { TRACE } from '../pipeline/trace.ts';
import { countersSince, type ExpertCounters } from './expert-counters.ts';
import { ExpertScheduler } from './expert-scheduler.ts';
import { type ControllerReport, PrefetchController } from './prefetch-controller.ts';
import { RouteNotes, RouteTrace } from './route-notes.ts';
import { BEAT_MILLIS, type StageLogic, serveStage, trace } from './stage.ts';
import { changedVector, F32_ID } from './vector-change.ts';

/** A dense tensor in memory. */
export interface LoadedTensor {
  readonly name: string;
  readonly layer: number;
  readonly type: number;
  readonly cols: number;
  readonly rows: number;
  /** One, or codes, scales and biases. */
  readonly parts: readonly ResidentPart[];
  readonly change?: VectorChange;
}

export interface ComputeSetup {
  readonly backend: BackendConfig;
  readonly backendName: BackendName;
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly queue: FetchQueueHandle;
  readonly tickets: Int32Array<SharedArrayBuffer>;
  readonly prompt: RingHandle;
  readonly tokens: RingHandle;
  readonly logits: RingHandle;
  /** To and from the predictor, when there is one. */
  readonly routes: RingHandle | undefined;
  readonly streams: RingHandle | undefined;
  readonly hints: RingHandle | undefined;
  /** (logits ring slots, vocabulary) */
  readonly logitsBuffer: Float32Array<SharedArrayBuffer>;
  readonly segments: readonly Uint8Array<SharedArrayBuffer>[];
  /** The slab's segments stand behind the dense ones in `segments`. */
  readonly firstSlabSegment: number;
  readonly dense: readonly LoadedTensor[];
  /** Per layer: the types of gate, up and down. */
  readonly expertTypes: readonly (readonly [number, number, number])[];
  readonly layerSources: readonly LayerSource[];
  readonly slab: SlabShape;
  readonly policy: Policy;
  readonly paths: readonly string[];
  readonly fileSizeBytes: readonly number[];
  readonly split: number;
  readonly readTimeoutMillis: number;
  /** Whether the number of hints that are read is fixed or found by measuring, and what it is at most. */
  readonly prefetch: 'auto' | 'fixed';
  readonly prefetchMost: number;
  /** Whether predictors learn from routes that nobody asks them about. */
  readonly predictorsLearn: boolean;
  /** Whether a chunk of a prompt reads its next layer ahead. */
  readonly readsUnion: boolean;
}

export interface ComputeRun {
  readonly promptTokens: number;
  /** Leading prompt tokens that are counted apart: the context that a measurement starts behind. */
  readonly depthTokens: number;
  /** The first position whose logits are wanted. */
  readonly logitsFrom: number;
  /** False: end after the prompt. */
  readonly decode: boolean;
  /** (decode steps): where to note how long each took, from one row of logits to the next, if the caller wants it. */
  readonly stepMicros?: Float64Array<SharedArrayBuffer>;
  /** (positions, layers, top-k): where to note the selected experts, if the caller wants them. */
  readonly routing?: Int32Array<SharedArrayBuffer>;
  /** Where every choice of the routers goes, if it is recorded; compute waits while this ring is full. */
  readonly trace?: RingHandle;
}

/** What one part of a run did. */
export interface PhaseTotals extends ExpertCounters {
  readonly tokens: number;
  readonly micros: number;
}

/**
 * What the compute stage did in one run, and in its parts: the context before the clock starts, the rest of the prompt, the
 * answer. The times are from its own clock and include its waits.
 */
export interface ComputeTotals extends ExpertCounters {
  readonly depth: PhaseTotals;
  readonly prompt: PhaseTotals;
  readonly decode: PhaseTotals;
  /** What the prefetch controller decided, and why. */
  readonly controller: ControllerReport;
  readonly promptTokens: number;
  readonly decodedTokens: number;
  readonly promptMicros: number;
  readonly decodeMicros: number;
}

const SEQUENCE = 0;

class ComputeStage implements StageLogic<ComputeSetup, ComputeRun, ComputeTotals> {
  private setup!: ComputeSetup;
  private backend!: Backend;
  private control!: ControlBlock;
  private scheduler!: ExpertScheduler;
  /** (maxRows, ROW_WORDS), (maxRows, top-k), (maxRows, top-k) */
  private rows!: Int32Array;
  private ids!: Int32Array;
  private weights!: Float32Array;

  setUp(setup: ComputeSetup): void {
    this.setup = setup;
    this.control = new ControlBlock(setup.control);
    const { maxRows, expertsPerToken } = setup.backend;
    this.rows = new Int32Array(maxRows * ROW_WORDS);
    this.ids = new Int32Array(maxRows * expertsPerToken);
    this.weights = new Float32Array(maxRows * expertsPerToken);
    try {
      this.backend = this.createBackend();
    } catch (cause) {
      throw backendError(cause);
    }
    this.scheduler = this.createScheduler(loadIo());
  }

  run(request: ComputeRun): ComputeTotals {
    const run = new Run(this.setup, request, this.backend);
    this.scheduler.beginRun();
    this.scheduler.takeHints = () => this.acceptHints(run);
    this.scheduler.askAhead = (layer) => run.askAhead(layer);
    try {
      return this.runSteps(run, request);
    } catch (cause) {
      throw backendError(cause);
    } finally {
      // A step that broke off must leave neither work on a GPU nor slots that wait for it.
      this.backend.abandon();
      this.scheduler.releaseBehind();
    }
  }

  private runSteps(run: Run, request: ComputeRun): ComputeTotals {
    this.backend.resetSequence(SEQUENCE);
    trace.beginLaps();
    trace.markLap(TRACE.runBegin, 0, request.promptTokens, 0, 0);
    const { depthTokens, promptTokens } = request;
    let going = true;
    const depth = this.phase(run, () => {
      going = this.prefill(run, depthTokens);
    });
    const prompt = this.phase(run, () => {
      going &&= this.prefill(run, promptTokens);
    });
    const decode = this.phase(run, () => {
      if (going && request.decode) this.decode(run);
    });
    trace.markLap(TRACE.runEnd, 0, run.position, 0, 0);
    return {
      ...this.scheduler.counters,
      controller: this.scheduler.controller.report(),
      depth,
      prompt,
      decode,
      promptTokens: depth.tokens + prompt.tokens,
      decodedTokens: decode.tokens,
      promptMicros: depth.micros + prompt.micros,
      decodeMicros: decode.micros,
    };
  }

  close(): void {
    this.backend?.close();
  }

  private createBackend(): Backend {
    const { setup } = this;
    const backend = new (loadBackend(setup.backendName).Backend)(setup.backend);
    for (const { name, layer, type, cols, rows, parts, change } of setup.dense) {
      const [bytes, scales, biases] = parts.map(({ segment, segmentBytes, byteLength }) =>
        setup.segments[segment]!.subarray(segmentBytes, segmentBytes + byteLength),
      );
      if (change !== undefined) {
        backend.setTensor(name, layer, F32_ID, cols, rows, changedVector(type, cols * rows, bytes!, change));
      } else if (scales === undefined) backend.setTensor(name, layer, type, cols, rows, bytes!);
      else backend.setTensor(name, layer, type, cols, rows, bytes!, scales, biases!);
    }
    setup.expertTypes.forEach((types, layer) => {
      backend.setExpertTypes(layer, types[0], types[1], types[2]);
    });
    backend.seal();
    backend.bindRows(this.rows);
    backend.bindRoutes(this.ids, this.weights);
    backend.bindSlab(setup.segments.slice(setup.firstSlabSegment));
    backend.bindLogits(setup.logitsBuffer);
    return backend;
  }

  private createScheduler(io: IoAddon): ExpertScheduler {
    const { setup } = this;
    const { places } = placeSlots(setup.slab);
    return new ExpertScheduler({
      backend: this.backend,
      readsBehind: setup.backendName !== 'cpu',
      slab: new Slab(setup.slab, setup.policy),
      places,
      firstSegment: setup.firstSlabSegment,
      layout: new ExpertLayout(setup.layerSources, setup.fileSizeBytes, setup.split),
      queue: new FetchQueue(setup.queue, (wakeFd) => io.signalWakeFd(wakeFd)),
      trace,
      tickets: new Tickets(setup.tickets),
      control: this.control,
      controller: new PrefetchController(setup.prefetch, setup.prefetchMost),
      layers: setup.backend.layers,
      experts: setup.backend.experts,
      expertsPerToken: setup.backend.expertsPerToken,
      readsUnion: setup.readsUnion,
      readTimeoutMillis: setup.readTimeoutMillis,
      readError: (failure, layer, expert) =>
        readError(failure, setup.paths[failure.file]!, `expert ${expert} of layer ${layer}`, (errno) =>
          io.errnoName(errno),
        ),
    });
  }

  /** Does one part of a run, and says what it took. */
  private phase(run: Run, work: () => void): PhaseTotals {
    const before = { ...this.scheduler.counters };
    const from = run.position;
    const beganMillis = performance.now();
    work();
    return {
      ...countersSince(this.scheduler.counters, before),
      tokens: run.position - from,
      micros: (performance.now() - beganMillis) * 1000,
    };
  }

  /** The prompt up to that position. False when the pipeline is stopping. */
  private prefill(run: Run, upTo: number): boolean {
    const { maxRows } = this.setup.backend;
    while (run.position < upTo) {
      const wanted = Math.min(maxRows, upTo - run.position);
      for (let row = 0; row < wanted; row++) {
        const token = run.nextPromptToken(this.control);
        if (token === STOPPED) return false;
        this.setRow(row, token, run.position + row);
      }
      trace.lap(TRACE.waitPrompt, 0, 0, 0, 0);
      const rowsAfter = Math.min(maxRows, upTo - run.position - wanted);
      if (!this.step(run, wanted, rowsAfter)) return false;
    }
    return true;
  }

  private decode(run: Run): void {
    const { stepMicros } = run.request;
    let sentMillis = performance.now();
    for (let count = 0; ; count++) {
      const token = run.nextSampledToken(this.control);
      trace.lap(TRACE.waitToken, 0, token, 0, 0);
      if (token === STOPPED || token === END_OF_TOKENS) return;
      this.setRow(0, token, run.position);
      if (!this.step(run, 1, 0)) return;
      const nowMillis = performance.now();
      if (stepMicros !== undefined && count < stepMicros.length)
        stepMicros[count] = (nowMillis - sentMillis) * 1000;
      sentMillis = nowMillis;
    }
  }

  /**
   * All layers for the rows that are set, and the logits that are wanted of them. `rowsAfter` will follow in one step, as
   * far as is known. False when stopping.
   */
  private step(run: Run, rowCount: number, rowsAfter: number): boolean {
    const { setup, scheduler } = this;
    const { layers, expertsPerToken } = setup.backend;
    const idCount = rowCount * expertsPerToken;
    this.backend.begin(rowCount);
    for (let layer = 0; layer < layers; layer++) {
      this.control.beat('compute');
      if (this.control.stopping) return false;
      this.backend.mix(layer);
      trace.lap(TRACE.mix, layer, rowCount, 0, 0);
      if (setup.predictorsLearn || scheduler.wantsHints) run.tellPredictors(layer, this.ids, rowCount);
      if (!run.recordRoutes(layer, this.ids, this.weights, rowCount, this.control)) return false;
      const isLast = layer === layers - 1;
      const [nextLayer, nextRows] = isLast ? [0, rowsAfter] : [layer + 1, rowCount];
      if (!scheduler.runLayer(layer, this.ids, idCount, nextLayer, nextRows)) return false;
      this.backend.combine(layer);
      trace.lap(TRACE.combine, layer, 0, 0, 0);
      this.acceptHints(run);
      trace.lap(TRACE.hints, layer, 0, 0, 0);
    }
    const firstLogits = Math.max(0, run.request.logitsFrom - run.position);
    run.position += rowCount;
    const sent = this.sendLogits(run, firstLogits, rowCount);
    trace.markLap(
      TRACE.stepEnd,
      0,
      run.position - rowCount,
      rowCount,
      run.position > run.request.promptTokens ? 1 : 0,
    );
    return sent;
  }

  private acceptHints({ hints }: Run): void {
    if (hints === undefined) return;
    for (;;) {
      const slot = hints.tryPeek();
      if (slot === EMPTY) return;
      const layer = hints.words[slot + HINT_LAYER]!;
      const expert = hints.words[slot + HINT_EXPERT]!;
      hints.release();
      this.scheduler.prefetch(layer, expert);
    }
  }

  private sendLogits(run: Run, firstRow: number, rowCount: number): boolean {
    for (let row = firstRow; row < rowCount; ) {
      const slot = run.logits.reserve(this.control, BEAT_MILLIS);
      this.control.beat('compute');
      if (slot === STOPPED) return false;
      if (slot === TIMED_OUT) continue;
      trace.lap(TRACE.waitLogits, 0, 0, 0, 0);
      const count = run.logits.contiguous(rowCount - row);
      this.backend.logits(row, count, run.logits.slotNumber(slot));
      for (let sent = 0; sent < count; sent++) {
        const at = run.logits.tryReserve();
        invariant(at !== EMPTY, 'a contiguous slot is free');
        run.logits.words[at] = run.position - rowCount + row + sent;
        run.logits.commit();
      }
      trace.lap(TRACE.logits, 0, count, 0, 0);
      row += count;
    }
    return true;
  }

  private setRow(row: number, token: number, position: number): void {
    const at = row * ROW_WORDS;
    this.rows[at + ROW_TOKEN] = token;
    this.rows[at + ROW_POSITION] = position;
    this.rows[at + ROW_SEQUENCE] = SEQUENCE;
  }
}

/** What belongs to one run: the rings, attached anew, and how far it has come. */
class Run {
  readonly request: ComputeRun;
  readonly logits: SpscRing;
  readonly hints: SpscRing | undefined;
  position = 0;
  private readonly setup: ComputeSetup;
  private readonly prompt: SpscRing;
  private readonly tokens: SpscRing;
  private readonly routes: RouteNotes | undefined;
  private readonly trace: RouteTrace | undefined;
  private promptSlot = EMPTY;
  private promptAt = 0;

  constructor(setup: ComputeSetup, request: ComputeRun, backend: Backend) {
    this.setup = setup;
    this.request = request;
    this.prompt = new SpscRing(setup.prompt);
    this.tokens = new SpscRing(setup.tokens);
    this.logits = new SpscRing(setup.logits);
    this.hints = setup.hints && new SpscRing(setup.hints);
    this.routes = setup.routes && new RouteNotes(setup.routes, setup.streams, setup.backend, backend);
    this.trace = request.trace && new RouteTrace(request.trace, setup.backend.expertsPerToken);
  }

  /** The next id of the prompt, or STOPPED. */
  nextPromptToken(control: ControlBlock): number {
    while (this.promptSlot < 0) {
      this.promptSlot = this.prompt.peek(control, BEAT_MILLIS);
      control.beat('compute');
      if (this.promptSlot === STOPPED) return STOPPED;
      this.promptAt = 0;
    }
    const { words } = this.prompt;
    const token = words[this.promptSlot + 1 + this.promptAt++]!;
    if (this.promptAt === words[this.promptSlot]!) {
      this.prompt.release();
      this.promptSlot = EMPTY;
    }
    return token;
  }

  /** The next sampled id, END_OF_TOKENS or STOPPED. */
  nextSampledToken(control: ControlBlock): number {
    for (;;) {
      const slot = this.tokens.peek(control, BEAT_MILLIS);
      control.beat('compute');
      if (slot === STOPPED) return STOPPED;
      if (slot === TIMED_OUT) continue;
      const token = this.tokens.words[slot]!;
      this.tokens.release();
      return token;
    }
  }

  /** What a layer's router chose. */
  tellPredictors(layer: number, ids: Int32Array, rowCount: number): void {
    this.routes?.note(layer, ids, rowCount);
  }

  /** The same for whoever records it: a trace, the caller. False when the pipeline is stopping. */
  recordRoutes(
    layer: number,
    ids: Int32Array,
    weights: Float32Array,
    rowCount: number,
    control: ControlBlock,
  ): boolean {
    if (this.trace && !this.trace.note(this.position, layer, ids, weights, rowCount, control)) return false;
    this.copyRoutes(layer, ids, rowCount);
    return true;
  }

  /** The predictor may say now what the next layers may want. */
  askAhead(layer: number): void {
    this.routes?.ask(layer);
  }

  private copyRoutes(layer: number, ids: Int32Array, rowCount: number): void {
    const { expertsPerToken, layers } = this.setup.backend;
    const { routing } = this.request;
    if (routing === undefined) return;
    for (let row = 0; row < rowCount; row++) {
      const to = ((this.position + row) * layers + layer) * expertsPerToken;
      if (to + expertsPerToken > routing.length) return;
      for (let index = 0; index < expertsPerToken; index++) {
        routing[to + index] = ids[row * expertsPerToken + index]!;
      }
    }
  }
}

serveStage(new ComputeStage());
