/**
 * The predict stage: hears what the router chose and says what may be chosen next.
 *
 * A hint is only a hint: compute decides whether to read, and a full hint ring drops it. This predictor is the
 * reference engines' temporal one: when layer l of a token has been routed, it names the experts that the token before
 * chose in layer l + 1. Their measured hit rate is 24 to 27 %.
 */
import { ControlBlock } from '../pipeline/control.ts';
import { HINT_EXPERT, HINT_LAYER, ROUTE_COUNT, ROUTE_IDS, ROUTE_LAYER } from '../pipeline/messages.ts';
import { EMPTY, type RingHandle, SpscRing, STOPPED, TIMED_OUT } from '../pipeline/ring.ts';
import { TRACE } from '../pipeline/trace.ts';
import { BEAT_MILLIS, type StageLogic, serveStage, trace } from './stage.ts';

export interface PredictSetup {
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly routes: RingHandle;
  readonly hints: RingHandle;
  readonly layers: number;
  readonly expertsPerToken: number;
}

export interface PredictTotals {
  readonly hintsGiven: number;
  readonly hintsDropped: number;
}

class PredictStage implements StageLogic<PredictSetup, undefined, PredictTotals> {
  private setup!: PredictSetup;
  /** (layers, top-k): the experts of the last token that passed, -1 where none has. */
  private last!: Int32Array;

  setUp(setup: PredictSetup): void {
    this.setup = setup;
    this.last = new Int32Array(setup.layers * setup.expertsPerToken);
  }

  run(): PredictTotals {
    const control = new ControlBlock(this.setup.control);
    const routes = new SpscRing(this.setup.routes);
    const hints = new SpscRing(this.setup.hints);
    this.last.fill(-1);
    // Ends when the engine stops the run: compute may end at any layer, so no message could say that it was the last.
    let hintsGiven = 0;
    let hintsDropped = 0;
    trace.beginLaps();
    for (;;) {
      const slot = routes.peek(control, BEAT_MILLIS);
      control.beat('predict');
      if (slot === STOPPED) return { hintsGiven, hintsDropped };
      if (slot === TIMED_OUT) continue;
      trace.lap(TRACE.waitRoute, 0, 0, 0, 0);
      const layer = routes.words[slot + ROUTE_LAYER]!;
      this.remember(layer, routes.words, slot);
      routes.release();
      const given = this.hint((layer + 1) % this.setup.layers, hints);
      hintsGiven += given;
      trace.lap(TRACE.predict, layer, given, 0, 0);
      hintsDropped += this.setup.expertsPerToken - given;
    }
  }

  close(): void {}

  private remember(layer: number, words: Int32Array, slot: number): void {
    const count = words[slot + ROUTE_COUNT]!;
    const first = layer * this.setup.expertsPerToken;
    for (let index = 0; index < count; index++) this.last[first + index] = words[slot + ROUTE_IDS + index]!;
  }

  private hint(layer: number, hints: SpscRing): number {
    const first = layer * this.setup.expertsPerToken;
    let given = 0;
    for (let index = 0; index < this.setup.expertsPerToken; index++) {
      const expert = this.last[first + index]!;
      const slot = expert < 0 ? EMPTY : hints.tryReserve();
      if (slot === EMPTY) continue;
      hints.words[slot + HINT_LAYER] = layer;
      hints.words[slot + HINT_EXPERT] = expert;
      hints.commit();
      given++;
    }
    return given;
  }
}

serveStage(new PredictStage());
