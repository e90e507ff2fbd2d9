/**
 * The predict stage: hears what the routers chose and says what may be chosen next.
 *
 * A hint is only a hint: compute decides whether to read, and a full hint ring drops it. When more routes wait, the stage
 * is behind: it learns from them and predicts from the last one only. Nothing waits for it, and a run goes on without it
 * when it fails (src/engine/pipeline.ts).
 */
import { loadCpu } from '../native.ts';
import { ControlBlock } from '../pipeline/control.ts';
import {
  HINT_EXPERT,
  HINT_LAYER,
  ROUTE_COUNT,
  ROUTE_IDS,
  ROUTE_LAYER,
  ROUTE_ROWS,
  ROUTE_SEQUENCE,
  STREAM_LAYER,
  STREAM_ROWS,
  STREAM_SEQUENCE,
  STREAM_VALUES,
} from '../pipeline/messages.ts';
import { EMPTY, SpscRing, STOPPED, TIMED_OUT } from '../pipeline/ring.ts';
import { TRACE } from '../pipeline/trace.ts';
import {
  type LookaheadSetup,
  NO_PREDICTIONS,
  type PredictRun,
  type PredictSetup,
  type PredictTotals,
} from './predict-contract.ts';
import { readMarkov, writeMarkov } from './predictors/markov-file.ts';
import { type LookaheadParts, Panel, type PanelParts } from './predictors/panel.ts';
import type { Route, Streams } from './predictors/predictor.ts';
import { BEAT_MILLIS, type StageLogic, serveStage, trace } from './stage.ts';
import { changedVector, F32_ID } from './vector-change.ts';

class PredictStage implements StageLogic<PredictSetup, PredictRun, PredictTotals> {
  private setup!: PredictSetup;
  private panel!: Panel;

  setUp(setup: PredictSetup): void {
    this.setup = setup;
    const { shape, state } = setup;
    const markov = state && readMarkov(state.path, shape, state.fingerprint);
    const parts: PanelParts = {
      names: setup.predictors,
      shape,
      ...(setup.lookahead === undefined ? {} : { lookahead: this.lookaheadParts(setup.lookahead) }),
      ...(markov === undefined ? {} : { markov }),
    };
    this.panel = new Panel(parts);
  }

  run({ saveState }: PredictRun): PredictTotals {
    if (!saveState) return new PredictLoop(this.setup, this.panel).run();
    const { state, shape } = this.setup;
    const tables = this.panel.markovTables;
    if (state !== undefined && tables !== undefined)
      writeMarkov(state.path, shape, state.fingerprint, tables);
    return NO_PREDICTIONS;
  }

  close(): void {}

  private lookaheadParts({ hidden, rmsEpsilon, routers }: LookaheadSetup): LookaheadParts {
    const { shape, depth } = this.setup;
    const probe = new (loadCpu().RouterProbe)(shape.layers, hidden, shape.experts, rmsEpsilon);
    routers.forEach(({ normType, norm, normChange, routerType, router }, layer) => {
      const [type, values] =
        normChange === undefined
          ? [normType, norm]
          : [F32_ID, changedVector(normType, hidden, norm, normChange)];
      const [codes, scales, biases] = router;
      if (scales === undefined) probe.setLayer(layer, type, values, routerType, shape.experts, codes!);
      else probe.setLayer(layer, type, values, routerType, shape.experts, codes!, scales, biases!);
    });
    return { probe, hidden, depth };
  }
}

class PredictLoop {
  private readonly setup: PredictSetup;
  private readonly panel: Panel;
  private readonly routes: SpscRing;
  private readonly hints: SpscRing;
  private readonly streams: SpscRing | undefined;
  private readonly route: Route;
  private readonly stream: Streams | undefined;
  private readonly totals: { -readonly [Key in keyof PredictTotals]: number } = { ...NO_PREDICTIONS };

  constructor(setup: PredictSetup, panel: Panel) {
    this.setup = setup;
    this.panel = panel;
    this.routes = new SpscRing(setup.routes);
    this.hints = new SpscRing(setup.hints);
    const { lookahead } = setup;
    this.streams = lookahead && new SpscRing(lookahead.streams);
    this.route = { layer: 0, rows: 0, count: 0, ids: this.routes.words, first: 0 };
    const values = lookahead && new Float32Array(lookahead.streams.words.buffer);
    this.stream = values && { layer: 0, rows: 0, values, first: 0 };
  }

  /** Ends when the engine stops the run: compute may end at any layer, so no message could say that it was the last. */
  run(): PredictTotals {
    const control = new ControlBlock(this.setup.control);
    trace.beginLaps();
    for (;;) {
      const slot = this.routes.peek(control, BEAT_MILLIS);
      control.beat('predict');
      if (slot === STOPPED) return this.totals;
      if (slot === TIMED_OUT) continue;
      trace.lap(TRACE.waitRoute, 0, 0, 0, 0);
      this.hear(slot);
      this.routes.release();
      trace.lap(TRACE.predict, this.route.layer, this.totals.hintsGiven, 0, 0);
    }
  }

  private hear(slot: number): void {
    const { route, totals } = this;
    const { words } = this.routes;
    route.layer = words[slot + ROUTE_LAYER]!;
    route.rows = words[slot + ROUTE_ROWS]!;
    route.count = words[slot + ROUTE_COUNT]!;
    route.first = slot + ROUTE_IDS;
    totals.routes++;
    const streams = this.streamsOf(words[slot + ROUTE_SEQUENCE]!);
    this.panel.observe(route, streams);
    if (this.routes.filled > 1) {
      totals.routesSkipped++;
    } else {
      if (streams !== undefined) totals.streamsUsed++;
      this.predict();
    }
    if (streams !== undefined) this.streams?.release();
  }

  /** The streams of this route, still in their ring; older ones are dropped. */
  private streamsOf(sequence: number): Streams | undefined {
    const { streams, stream } = this;
    if (streams === undefined || stream === undefined) return undefined;
    for (;;) {
      const slot = streams.tryPeek();
      if (slot === EMPTY) return undefined;
      const age = (sequence - streams.words[slot + STREAM_SEQUENCE]!) | 0;
      if (age < 0) return undefined;
      if (age > 0) {
        streams.release();
        continue;
      }
      stream.layer = streams.words[slot + STREAM_LAYER]!;
      stream.rows = streams.words[slot + STREAM_ROWS]!;
      stream.first = slot + STREAM_VALUES;
      return stream;
    }
  }

  private predict(): void {
    const { route, setup } = this;
    const { expertsPerToken, experts, layers } = setup.shape;
    const most = route.rows === 1 ? expertsPerToken : experts;
    for (let ahead = 1; ahead <= setup.depth; ahead++) {
      const { count, experts: named } = this.panel.predict(route.layer, ahead, most);
      const layer = (route.layer + ahead) % layers;
      for (let rank = 0; rank < count; rank++) this.give(layer, named[rank]!);
    }
  }

  private give(layer: number, expert: number): void {
    const slot = this.hints.tryReserve();
    if (slot === EMPTY) {
      this.totals.hintsDropped++;
      return;
    }
    this.hints.words[slot + HINT_LAYER] = layer;
    this.hints.words[slot + HINT_EXPERT] = expert;
    this.hints.commit();
    this.totals.hintsGiven++;
  }
}

serveStage(new PredictStage());
