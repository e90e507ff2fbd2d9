/** Several predictors as one: all hear every route, and their votes are ranked together. */
import { invariant } from '../../errors.ts';
import type { RouterProbe } from '../../native.ts';
import { Frequency } from './frequency.ts';
import { Lookahead } from './lookahead.ts';
import { Markov, type MarkovTables } from './markov.ts';
import {
  emptyHints,
  type Hints,
  type Predictor,
  type PredictorName,
  type PredictorShape,
  type Route,
  type Streams,
  Votes,
} from './predictor.ts';
import { Temporal } from './temporal.ts';

/** What `lookahead` needs; nobody else does. */
export interface LookaheadParts {
  readonly probe: RouterProbe;
  readonly hidden: number;
  readonly depth: number;
}

export interface PanelParts {
  readonly names: readonly PredictorName[];
  readonly shape: PredictorShape;
  readonly lookahead?: LookaheadParts;
  readonly markov?: MarkovTables;
}

function createPredictor(name: PredictorName, { shape, lookahead, markov }: PanelParts): Predictor {
  switch (name) {
    case 'temporal':
      return new Temporal(shape);
    case 'frequency':
      return new Frequency(shape);
    case 'markov':
      return new Markov(shape, markov);
    case 'lookahead':
      invariant(lookahead !== undefined, 'lookahead has its routers');
      return new Lookahead(shape, lookahead.probe, lookahead.hidden, lookahead.depth);
  }
}

export class Panel {
  readonly predictors: readonly Predictor[];
  private readonly shape: PredictorShape;
  private readonly votes: Votes;
  private readonly hints: Hints;

  constructor(parts: PanelParts, predictors?: readonly Predictor[]) {
    this.shape = parts.shape;
    this.predictors = predictors ?? parts.names.map((name) => createPredictor(name, parts));
    this.votes = new Votes(parts.shape.experts);
    this.hints = emptyHints(parts.shape.experts);
  }

  observe(route: Route, streams: Streams | undefined): void {
    const { layer, count } = route;
    const { layers, experts } = this.shape;
    invariant(layer >= 0 && layer < layers && count <= experts, `a route of layer ${layer}`);
    for (const predictor of this.predictors) predictor.observe(route, streams);
  }

  /** The `most` likeliest experts of the layer `ahead` layers after `layer`. Overwritten by the next call. */
  predict(layer: number, ahead: number, most: number): Hints {
    const target = (layer + ahead) % this.shape.layers;
    for (const predictor of this.predictors) predictor.vote(target, ahead, this.votes);
    this.votes.rank(most, this.hints);
    return this.hints;
  }

  /** What the predictor markov has learned, where there is one. */
  get markovTables(): MarkovTables | undefined {
    return this.predictors.find((each) => each instanceof Markov)?.tables;
  }
}
