/**
 * What a predictor is: it hears every choice of the routers and names the experts that a layer may want next.
 *
 * A hint changes which bytes are in memory when, never what is computed. So predictors may be wrong, late or dead; they
 * may not be slow without bound or grow: everything is allocated when they are made.
 */

export const PREDICTOR_NAMES = ['temporal', 'frequency', 'markov', 'lookahead'] as const;
export type PredictorName = (typeof PREDICTOR_NAMES)[number];

export interface PredictorShape {
  readonly layers: number;
  readonly experts: number;
  readonly expertsPerToken: number;
}

/**
 * What one layer's router chose for the rows of one step. `ids` from `first` on are `count` different experts, the last
 * row's first; `rows` is 1 while an answer is generated.
 */
export interface Route {
  layer: number;
  rows: number;
  count: number;
  ids: Int32Array;
  first: number;
}

/** The residual streams of some rows of the step whose layer has just been routed. */
export interface Streams {
  layer: number;
  rows: number;
  /** (rows, hidden) from `first` on */
  values: Float32Array;
  first: number;
}

export interface Predictor {
  readonly name: PredictorName;
  /** `streams` are of the same layer and step; undefined when there was no time for them. */
  observe(route: Route, streams: Streams | undefined): void;
  /** Adds experts of `layer`, which comes `ahead` layers after the last one observed, with the chance of each. */
  vote(layer: number, ahead: number, votes: Votes): void;
}

/** Ranked hints: filled by `Votes.rank`. */
export interface Hints {
  count: number;
  readonly experts: Int32Array;
  /** The chance that the router will choose it, 0 to 1, as far as the predictors know. */
  readonly confidence: Float64Array;
}

export function emptyHints(most: number): Hints {
  return { count: 0, experts: new Int32Array(most), confidence: new Float64Array(most) };
}

/** Collects votes of any number of predictors: chances combine as those of independent events. */
export class Votes {
  /** (experts): the chance that it is not chosen. */
  private readonly doubt: Float64Array;
  private readonly touched: Int32Array;
  private count = 0;

  constructor(experts: number) {
    this.doubt = new Float64Array(experts).fill(1);
    this.touched = new Int32Array(experts);
  }

  add(expert: number, confidence: number): void {
    if (confidence <= 0) return;
    if (this.doubt[expert] === 1) this.touched[this.count++] = expert;
    // Never quite 0 or 1: an expert that is certain still has to be told from one that nobody named.
    this.doubt[expert] = Math.min(0.999_999, Math.max(1e-6, this.doubt[expert]! * (1 - confidence)));
  }

  /** The `most` likeliest, likeliest first (the lower expert wins a tie), and forgets all votes. */
  rank(most: number, into: Hints): void {
    const { doubt, touched } = this;
    const wanted = Math.min(most, this.count, into.experts.length);
    into.count = 0;
    for (let index = 0; index < this.count; index++) {
      this.insert(touched[index]!, wanted, into);
      into.count = Math.min(wanted, into.count + 1);
    }
    for (let rank = 0; rank < into.count; rank++) into.confidence[rank] = 1 - doubt[into.experts[rank]!]!;
    for (let index = 0; index < this.count; index++) doubt[touched[index]!] = 1;
    this.count = 0;
  }

  /** Into the ranks kept so far; most experts of hundreds fail at the first comparison, with the last of them. */
  private insert(expert: number, wanted: number, { experts, count }: Hints): void {
    let rank = count;
    for (; rank > 0 && this.comesBefore(expert, experts[rank - 1]!); rank--) {
      if (rank < wanted) experts[rank] = experts[rank - 1]!;
    }
    if (rank < wanted) experts[rank] = expert;
  }

  private comesBefore(one: number, other: number): boolean {
    const lead = this.doubt[other]! - this.doubt[one]!;
    return lead > 0 || (lead === 0 && one < other);
  }
}
