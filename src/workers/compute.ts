/**
 * The compute stage: drives the backend layer by layer and decides what the slab holds.
 *
 * One run is one sequence: first the prompt in chunks of up to `maxRows` rows, then a row per sampled token. It is the
 * only producer of reads, so it alone knows what is in the slab, and nothing there needs a lock.
 */
import { invariant } from '../errors.ts';
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
import {
  END_OF_TOKENS,
  HINT_EXPERT,
  HINT_LAYER,
  ROUTE_COUNT,
  ROUTE_IDS,
  ROUTE_LAYER,
  ROUTE_POSITION,
} from '../pipeline/messages.ts';
import { EMPTY, type RingHandle, SpscRing, STOPPED, TIMED_OUT } from '../pipeline/ring.ts';
import { placeSlots, Slab, type SlabShape } from '../pipeline/slab.ts';
import { readError, Tickets } from '../pipeline/tickets.ts';
import { type ExpertCounters, ExpertScheduler, newCounters } from './expert-scheduler.ts';
import { BEAT_MILLIS, type StageLogic, serveStage } from './stage.ts';

/** A dense tensor in memory, `segmentBytes` into its segment. */
export interface LoadedTensor {
  readonly name: string;
  readonly layer: number;
  readonly type: number;
  readonly cols: number;
  readonly rows: number;
  readonly segment: number;
  readonly segmentBytes: number;
  readonly byteLength: number;
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
  readonly routes: RingHandle;
  readonly hints: RingHandle;
  /** (logits ring slots, vocabulary) */
  readonly logitsBuffer: Float32Array<SharedArrayBuffer>;
  readonly segments: readonly Uint8Array<SharedArrayBuffer>[];
  /** The slab's segments stand behind the dense ones in `segments`. */
  readonly firstSlabSegment: number;
  readonly dense: readonly LoadedTensor[];
  /** Per layer: the ggml types of gate, up and down. */
  readonly expertTypes: readonly (readonly [number, number, number])[];
  readonly layerSources: readonly LayerSource[];
  readonly slab: SlabShape;
  readonly policy: Policy;
  readonly paths: readonly string[];
  readonly fileSizeBytes: readonly number[];
  readonly split: number;
  readonly readTimeoutMillis: number;
  readonly prefetch: boolean;
}

export interface ComputeRun {
  readonly promptTokens: number;
  /** Logits of the prompt's last row only, or of every row. */
  readonly logits: 'last' | 'all';
  /** False: end after the prompt. */
  readonly decode: boolean;
  /** (positions, layers, top-k): where to note the selected experts, if the caller wants them. */
  readonly routing?: Int32Array<SharedArrayBuffer>;
}

export interface ComputeTotals extends ExpertCounters {
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
    const run = new Run(this.setup, request);
    this.scheduler.counters = newCounters();
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
    const beganMillis = performance.now();
    const promptDone = this.prefill(run);
    const promptMillis = performance.now();
    if (promptDone && request.decode) this.decode(run);
    return {
      ...this.scheduler.counters,
      promptTokens: Math.min(run.position, request.promptTokens),
      decodedTokens: Math.max(0, run.position - request.promptTokens),
      promptMicros: (promptMillis - beganMillis) * 1000,
      decodeMicros: (performance.now() - promptMillis) * 1000,
    };
  }

  close(): void {
    this.backend?.close();
  }

  private createBackend(): Backend {
    const { setup } = this;
    const backend = new (loadBackend(setup.backendName).Backend)(setup.backend);
    for (const tensor of setup.dense) {
      const { segmentBytes, byteLength } = tensor;
      const view = setup.segments[tensor.segment]!.subarray(segmentBytes, segmentBytes + byteLength);
      backend.setTensor(tensor.name, tensor.layer, tensor.type, tensor.cols, tensor.rows, view);
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
      tickets: new Tickets(setup.tickets),
      control: this.control,
      experts: setup.backend.experts,
      expertsPerToken: setup.backend.expertsPerToken,
      readTimeoutMillis: setup.readTimeoutMillis,
      readError: (failure, layer, expert) =>
        readError(failure, setup.paths[failure.file]!, `expert ${expert} of layer ${layer}`, (errno) =>
          io.errnoName(errno),
        ),
    });
  }

  /** False when the pipeline is stopping. */
  private prefill(run: Run): boolean {
    const { maxRows } = this.setup.backend;
    while (run.position < run.request.promptTokens) {
      const wanted = Math.min(maxRows, run.request.promptTokens - run.position);
      for (let row = 0; row < wanted; row++) {
        const token = run.nextPromptToken(this.control);
        if (token === STOPPED) return false;
        this.setRow(row, token, run.position + row);
      }
      const last = run.position + wanted === run.request.promptTokens;
      const firstLogits = run.request.logits === 'all' ? 0 : last ? wanted - 1 : wanted;
      if (!this.step(run, wanted, firstLogits)) return false;
    }
    return true;
  }

  private decode(run: Run): void {
    for (;;) {
      const token = run.nextSampledToken(this.control);
      if (token === STOPPED || token === END_OF_TOKENS) return;
      this.setRow(0, token, run.position);
      if (!this.step(run, 1, 0)) return;
    }
  }

  /** All layers for the rows that are set, and the logits from row `firstLogits` on. False when stopping. */
  private step(run: Run, rowCount: number, firstLogits: number): boolean {
    const { layers, expertsPerToken } = this.setup.backend;
    this.backend.begin(rowCount);
    for (let layer = 0; layer < layers; layer++) {
      this.control.beat('compute');
      if (this.control.stopping) return false;
      this.backend.mix(layer);
      run.noteRoutes(layer, this.ids, rowCount);
      if (!this.scheduler.runLayer(layer, this.ids, rowCount * expertsPerToken)) return false;
      this.backend.combine(layer);
      this.acceptHints(run);
    }
    run.position += rowCount;
    return this.sendLogits(run, firstLogits, rowCount);
  }

  private acceptHints(run: Run): void {
    for (;;) {
      const slot = run.hints.tryPeek();
      if (slot === EMPTY) return;
      const layer = run.hints.words[slot + HINT_LAYER]!;
      const expert = run.hints.words[slot + HINT_EXPERT]!;
      run.hints.release();
      if (this.setup.prefetch) this.scheduler.prefetch(layer, expert);
    }
  }

  private sendLogits(run: Run, firstRow: number, rowCount: number): boolean {
    for (let row = firstRow; row < rowCount; ) {
      const slot = run.logits.reserve(this.control, BEAT_MILLIS);
      this.control.beat('compute');
      if (slot === STOPPED) return false;
      if (slot === TIMED_OUT) continue;
      const count = run.logits.contiguous(rowCount - row);
      this.backend.logits(row, count, run.logits.slotNumber(slot));
      for (let sent = 0; sent < count; sent++) {
        const at = run.logits.tryReserve();
        invariant(at !== EMPTY, 'a contiguous slot is free');
        run.logits.words[at] = run.position - rowCount + row + sent;
        run.logits.commit();
      }
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
  readonly hints: SpscRing;
  position = 0;
  private readonly setup: ComputeSetup;
  private readonly prompt: SpscRing;
  private readonly tokens: SpscRing;
  private readonly routes: SpscRing;
  private promptSlot = EMPTY;
  private promptAt = 0;

  constructor(setup: ComputeSetup, request: ComputeRun) {
    this.setup = setup;
    this.request = request;
    this.prompt = new SpscRing(setup.prompt);
    this.tokens = new SpscRing(setup.tokens);
    this.logits = new SpscRing(setup.logits);
    this.routes = new SpscRing(setup.routes);
    this.hints = new SpscRing(setup.hints);
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

  /** Tells the predictor about the last row, and the caller, if it asked, about all. */
  noteRoutes(layer: number, ids: Int32Array, rowCount: number): void {
    const { expertsPerToken, layers } = this.setup.backend;
    const slot = this.routes.tryReserve();
    if (slot !== EMPTY) {
      const { words } = this.routes;
      words[slot + ROUTE_POSITION] = this.position + rowCount - 1;
      words[slot + ROUTE_LAYER] = layer;
      words[slot + ROUTE_COUNT] = expertsPerToken;
      const first = (rowCount - 1) * expertsPerToken;
      for (let index = 0; index < expertsPerToken; index++)
        words[slot + ROUTE_IDS + index] = ids[first + index]!;
      this.routes.commit();
    }
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
