/**
 * The running pipeline: shared memory, threads, and one run at a time through them.
 *
 * Start: the model's files are opened, the plan is made, memory is allocated, readers start, the dense weights come in
 * through the same queue and readers as experts do, and the stages are set up. A run: rings are emptied, the stages get
 * one call each, and everything else happens in shared memory until they return. Stop: a word is set and every doorbell
 * rung. Whatever fails, the run ends with the first error, all stages are back in their event loops, and no thread or
 * file is left behind by `close`.
 */
import { join } from 'node:path';
import { invariant, MoestreamError } from '../errors.ts';
import type { Model } from '../model/model.ts';
import { type BackendConfig, type BackendName, type IoAddon, loadIo } from '../native.ts';
import { ControlBlock, STAGES, type Stage } from '../pipeline/control.ts';
import { FetchQueue, LANE_DEMAND, LANE_PREFETCH } from '../pipeline/fetch-queue.ts';
import { allocateSegment, formatBytes } from '../pipeline/memory.ts';
import * as messages from '../pipeline/messages.ts';
import { layerSource, type MemoryPlan } from '../pipeline/plan.ts';
import type { ResidentPlan } from '../pipeline/residents.ts';
import { SpscRing } from '../pipeline/ring.ts';
import { placeSlots, slotCount } from '../pipeline/slab.ts';
import { Tickets } from '../pipeline/tickets.ts';
import { NO_TRACER, type Observation, type Tracer } from '../pipeline/trace.ts';
import type { RecordedTrace, TraceRole } from '../pipeline/trace-log.ts';
import type { VocabularyTable } from '../pipeline/vocabulary-table.ts';
import type { ComputeRun, ComputeSetup, ComputeTotals } from '../workers/compute.ts';
import type { SampleRun, SampleSetup, SampleTotals } from '../workers/sample.ts';
import { ActiveRun, abortWith } from './active-run.ts';
import { chooseBackend } from './backend-choice.ts';
import { readDenseWeights } from './dense-weights.ts';
import { Forecaster } from './forecaster.ts';
import { watchHeartbeats } from './heartbeats.ts';
import { closeModelFiles, type ModelFiles, openModelFiles } from './model-files.ts';
import type { EngineSettings } from './options.ts';
import { cacheRoomBytes } from './page-cache.ts';
import { type PlannedModel, planOf } from './planning.ts';
import { chooseReadEngine } from './read-engine.ts';
import { type ReadEngine, ReaderPool, StageHandle } from './stages.ts';
import { type Counter, TraceRecorder } from './trace-recorder.ts';

export interface PipelineRun {
  readonly compute: ComputeRun;
  /** Without a sampler the caller takes the logits off the ring itself. */
  readonly sample: SampleRun | undefined;
  /** Where every choice of the routers goes; the caller empties it. */
  readonly trace?: SpscRing;
}

interface Rings {
  readonly prompt: SpscRing;
  readonly tokens: SpscRing;
  readonly logits: SpscRing;
  readonly text: SpscRing;
}

function createRings(): Rings {
  return {
    prompt: SpscRing.create(messages.PROMPT_SLOTS, messages.PROMPT_WORDS),
    tokens: SpscRing.create(messages.TOKEN_SLOTS, messages.TOKEN_WORDS),
    logits: SpscRing.create(messages.LOGITS_SLOTS, messages.LOGITS_WORDS),
    text: SpscRing.create(messages.TEXT_SLOTS, messages.TEXT_WORDS),
  };
}

/** What is worth looking at while a run goes on: how full everything is that threads wait for. */
function countersOf(rings: Readonly<Record<string, SpscRing | undefined>>, queue: FetchQueue): Counter[] {
  const there = Object.entries(rings).flatMap(([name, ring]) => (ring === undefined ? [] : [{ name, ring }]));
  const fill = there.map(({ name, ring }) => ({
    name: `${name} ring`,
    most: ring.slots,
    now: () => ring.filled,
  }));
  const waiting = (name: string, lane: number): Counter => ({
    name: `${name} queue`,
    most: queue.slots,
    now: () => queue.waiting(lane),
  });
  const underWay = {
    name: 'reads under way',
    most: queue.mostUnderWay,
    now: () => queue.underWay(LANE_DEMAND) + queue.underWay(LANE_PREFETCH),
  };
  return [...fill, waiting('demand', LANE_DEMAND), waiting('prefetch', LANE_PREFETCH), underWay];
}

export class Pipeline {
  readonly plan: MemoryPlan;
  readonly config: BackendConfig;
  readonly files: ModelFiles;
  readonly rings: Rings;
  /** (logits ring slots, vocabulary) */
  readonly logitsBuffer: Float32Array<SharedArrayBuffer>;
  private readonly io: IoAddon;
  private readonly model: Model;
  private readonly settings: EngineSettings;
  private readonly residents: ResidentPlan;
  private readonly control = new ControlBlock();
  private readonly queue: FetchQueue;
  private readonly wakeFd: number;
  private readonly tickets: Tickets;
  private readonly readers: ReaderPool;
  readonly readEngine: ReadEngine;
  private readonly recorder: TraceRecorder | undefined;
  private readonly compute: StageHandle<ComputeSetup, ComputeRun, ComputeTotals>;
  private readonly forecaster: Forecaster;
  private readonly sample: StageHandle<SampleSetup, SampleRun, SampleTotals>;
  readonly backend: BackendName;
  private sampleReady = false;
  private active: ActiveRun | undefined;
  /** Dense weights and slab. */
  private segments: readonly Uint8Array<SharedArrayBuffer>[] = [];
  private trace: SpscRing | undefined;

  static async start(model: Model, given: EngineSettings): Promise<Pipeline> {
    const io = loadIo();
    const settings = { ...given, backend: chooseBackend(model, given) };
    const planned = planOf(model, settings);
    const paths = model.files.map((file) => file.path);
    const room = (): number => cacheRoomBytes(planned.plan);
    const files = openModelFiles(io, paths, settings.io, settings.notice, room);
    const pipeline = new Pipeline(io, model, settings, planned, files);
    try {
      await pipeline.setUp();
    } catch (cause) {
      await pipeline.close();
      throw cause;
    }
    return pipeline;
  }

  private constructor(
    io: IoAddon,
    model: Model,
    settings: EngineSettings,
    planned: PlannedModel,
    files: ModelFiles,
  ) {
    this.io = io;
    this.model = model;
    this.settings = settings;
    this.plan = planned.plan;
    this.config = planned.config;
    this.residents = planned.residents;
    this.files = files;
    this.rings = createRings();
    this.recorder = settings.trace ? new TraceRecorder() : undefined;
    this.compute = new StageHandle('compute', this.observe('compute'));
    this.forecaster = new Forecaster(settings, planned.config, (role) => this.observe(role));
    this.sample = new StageHandle('sample', this.observe('sample'));
    this.logitsBuffer = new Float32Array(
      new SharedArrayBuffer(messages.LOGITS_SLOTS * planned.config.vocabulary * 4),
    );
    this.tickets = Tickets.create(slotCount(planned.plan.slab) + 1);
    const { engine, mostUnderWay } = chooseReadEngine(io, settings, model, files.direct || files.cached);
    this.wakeFd = engine === 'uring' ? io.createWakeFd() : -1;
    this.queue = FetchQueue.create(settings.queueSlots, mostUnderWay, this.wakeFd, (wakeFd) =>
      io.signalWakeFd(wakeFd),
    );
    this.readers = new ReaderPool(engine, settings.readers);
    this.readEngine = engine;
    this.backend = settings.backend === 'metal' ? 'metal' : 'cpu';
    this.recorder?.lookAt(countersOf({ ...this.rings, ...this.forecaster.rings }, this.queue));
  }

  /** What was recorded so far, when the settings ask for it. */
  get recordedTrace(): RecordedTrace | undefined {
    return this.recorder?.recorded;
  }

  /** What the main thread writes its events with. */
  get tracer(): Tracer {
    return this.recorder?.main ?? NO_TRACER;
  }

  /** How one more thread is watched. */
  private observe(role: TraceRole, name: string = role): Observation | undefined {
    const { cpuProfileFolder } = this.settings;
    const cpuProfile =
      cpuProfileFolder === undefined ? undefined : join(cpuProfileFolder, `${name}.cpuprofile`);
    const trace = this.recorder?.follow(name, role);
    return trace === undefined && cpuProfile === undefined ? undefined : { trace, cpuProfile };
  }

  /**
   * Starts one run of the stages. The caller feeds and drains the rings and then calls `end`, in every case.
   */
  begin(request: PipelineRun, signal: AbortSignal | undefined): ActiveRun {
    invariant(this.active === undefined, 'one run at a time');
    this.trace = request.trace;
    for (const ring of this.allRings()) ring.reset();
    this.control.setRunStopped(false);
    // Before any stage begins: what the recorder finds is the run before's, and forgotten.
    const endRecording = this.recorder?.begin();
    const runs: Readonly<Record<Stage, boolean>> = {
      compute: true,
      sample: request.sample !== undefined,
      predict: this.forecaster.works,
    };
    const stages = {
      predict: this.forecaster.run(),
      sample: request.sample === undefined ? Promise.resolve(undefined) : this.sample.run(request.sample),
      compute: this.compute.run({
        ...request.compute,
        ...(request.trace === undefined ? {} : { trace: request.trace.handle() }),
      }),
    };
    const active = new ActiveRun(stages, {
      stop: () => this.stop(),
      ended: () => {
        this.active = undefined;
        this.trace = undefined;
      },
    });
    this.active = active;
    if (endRecording !== undefined) active.onEnd(endRecording);
    active.onEnd(this.readers.fuse.listen((error) => active.fail(error)));
    const watched = STAGES.filter((stage) => runs[stage]);
    active.onEnd(
      watchHeartbeats(this.control, watched, (stage, error) =>
        stage === 'predict' ? this.forecaster.lose(error) : active.fail(error),
      ),
    );
    if (signal !== undefined) active.onEnd(abortWith(signal, active));
    return active;
  }

  /** The sample stage needs the vocabulary, which only generating needs: set up before the first such run. */
  async setUpSample(makeVocabulary: () => VocabularyTable): Promise<void> {
    if (this.sampleReady) return;
    const vocabulary = makeVocabulary();
    await this.sample.setUp({
      control: this.control.words,
      logits: this.rings.logits.handle(),
      tokens: this.rings.tokens.handle(),
      text: this.rings.text.handle(),
      logitsBuffer: this.logitsBuffer,
      vocabulary,
    });
    this.sampleReady = true;
  }

  /** Ends the current run, if any, within one layer. */
  stop(): void {
    this.control.setRunStopped(true);
    this.interrupt();
  }

  /** Ends every thread and closes every file. */
  async close(): Promise<void> {
    this.control.shutDown();
    this.interrupt();
    const said = (error: MoestreamError): void => this.settings.notice(error.message);
    const stages = Promise.all([this.compute.end(said), this.forecaster.end(), this.sample.end(said)]);
    const totals = await this.readers.end();
    await stages;
    // A loop over an answer that was left standing must not keep this pipeline's memory.
    await this.active?.abandon();
    for (const { notice } of totals) if (notice !== undefined) this.settings.notice(notice);
    closeModelFiles(this.io, this.files);
    if (this.wakeFd >= 0) this.io.close(this.wakeFd);
    // The collector frees shared memory when it likes; a next engine needs these gigabytes now.
    for (const segment of this.segments) this.io.release(segment);
    this.segments = [];
  }

  private interrupt(): void {
    for (const ring of this.allRings()) ring.interrupt();
    this.queue.interrupt();
    this.tickets.bell.interrupt();
  }

  private allRings(): SpscRing[] {
    const trace = this.trace === undefined ? [] : [this.trace];
    return [...Object.values(this.rings), ...this.forecaster.ringList, ...trace];
  }

  private async setUp(): Promise<void> {
    const { slab } = this.plan;
    const dense = this.residents.segmentBytes.map((bytes) => allocateSegment(bytes, this.io));
    const slabSegments = placeSlots(slab).segmentBytes.map((bytes) => allocateSegment(bytes, this.io));
    const segments = [...dense, ...slabSegments];
    this.segments = segments;
    this.readers.start(
      {
        control: this.control.words,
        queue: this.queue.handle(),
        tickets: this.tickets.words,
        fds: this.files.fds,
        segments,
      },
      (reader) => this.observe('reader', this.readEngine === 'uring' ? 'io_uring' : `reader-${reader + 1}`),
    );
    for (const segment of dense) this.io.prefault(segment);
    const { io, queue, tickets, readers } = this;
    const weights = readDenseWeights({
      io,
      queue,
      tickets,
      readers,
      reads: this.residents.reads,
      paths: this.files.paths,
      timeoutMillis: this.settings.readTimeoutMillis,
    });
    for (const segment of slabSegments) this.io.prefault(segment);
    await weights;
    if (this.settings.mlock) this.lockInMemory(segments);
    await this.forecaster.setUp(this.model, this.control.words, this.residents, dense);
    await this.compute.setUp(this.computeSetup(segments, dense.length));
  }

  private computeSetup(
    segments: readonly Uint8Array<SharedArrayBuffer>[],
    firstSlabSegment: number,
  ): ComputeSetup {
    const { rings, model, settings } = this;
    const forecast = this.forecaster.rings;
    return {
      backend: this.config,
      backendName: this.backend,
      control: this.control.words,
      queue: this.queue.handle(),
      tickets: this.tickets.words,
      prompt: rings.prompt.handle(),
      tokens: rings.tokens.handle(),
      logits: rings.logits.handle(),
      routes: forecast?.routes.handle(),
      streams: forecast?.streams?.handle(),
      hints: forecast?.hints.handle(),
      logitsBuffer: this.logitsBuffer,
      segments,
      firstSlabSegment,
      dense: this.residents.tensors.map(({ name, layer, type, cols, rows, parts, change }) => ({
        name,
        layer,
        type: type.id,
        cols,
        rows,
        parts,
        ...(change === undefined ? {} : { change }),
      })),
      expertTypes: model.tensors.experts.map((each) => [
        each.gate.type.id,
        each.up.type.id,
        each.down.type.id,
      ]),
      layerSources: model.tensors.experts.map(layerSource),
      slab: this.plan.slab,
      policy: settings.cachePolicy,
      paths: this.files.paths,
      fileSizeBytes: this.files.sizeBytes,
      split: settings.split,
      readTimeoutMillis: settings.readTimeoutMillis,
      ...this.forecaster.acceptance,
    };
  }

  private lockInMemory(segments: readonly Uint8Array[]): void {
    try {
      for (const segment of segments) this.io.lock(segment);
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new MoestreamError(
        'PLAN_REFUSED',
        `the system does not lock ${formatBytes(this.plan.slabBytes)}: ${reason}`,
        {
          hint: 'Raise the limit (`ulimit -l unlimited`), or go without --mlock.',
          cause,
        },
      );
    }
  }
}
