/** What the predict stage is given, asked and reports. */
import type { RingHandle } from '../pipeline/ring.ts';
import type { PredictorName, PredictorShape } from './predictors/predictor.ts';

/** A router and the norm before it, where they lie in memory. */
export interface RouterWeights {
  readonly normType: number;
  readonly norm: Uint8Array<SharedArrayBuffer>;
  readonly routerType: number;
  readonly router: Uint8Array<SharedArrayBuffer>;
}

/** What `lookahead` needs. */
export interface LookaheadSetup {
  readonly hidden: number;
  readonly rmsEpsilon: number;
  readonly streams: RingHandle;
  /** (layers) */
  readonly routers: readonly RouterWeights[];
}

export interface PredictSetup {
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly routes: RingHandle;
  readonly hints: RingHandle;
  readonly shape: PredictorShape;
  readonly predictors: readonly PredictorName[];
  /** Layers to predict ahead. */
  readonly depth: number;
  readonly lookahead: LookaheadSetup | undefined;
  /** Where `markov` keeps what it learned, and of which model. */
  readonly state: { readonly path: string; readonly fingerprint: Uint8Array } | undefined;
}

export interface PredictRun {
  /** True: no generation, only write what was learned. */
  readonly saveState: boolean;
}

/** What the predict stage did in one run. */
export interface PredictTotals {
  /** Routes heard, and those of them that came too fast to predict from. */
  readonly routes: number;
  readonly routesSkipped: number;
  /** Predictions made with residual streams. */
  readonly streamsUsed: number;
  readonly hintsGiven: number;
  /** Hints that found the ring full. */
  readonly hintsDropped: number;
}

export const NO_PREDICTIONS: PredictTotals = {
  routes: 0,
  routesSkipped: 0,
  streamsUsed: 0,
  hintsGiven: 0,
  hintsDropped: 0,
};
