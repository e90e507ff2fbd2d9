/**
 * The routers of the next layers, asked about the residual stream of this one. Layers change the stream little, so most of
 * what a later router will see is already there; the more so the more of this layer has been computed.
 *
 * The confidence of a guess is measured: how often the guess of that rank, so many layers ahead, was right lately.
 */
import type { RouterProbe } from '../../native.ts';
import type { Predictor, PredictorShape, Route, Streams, Votes } from './predictor.ts';

export const LOOKAHEAD_MAX = 8;
/** Weight of the newest guess in the share of a rank that was right. */
const NEWEST = 1 / 64;
const SHARE_AT_FIRST = 0.5;
/** Rows of a batch that are asked: their union names the likeliest experts of all. */
export const STREAM_ROWS_MAX = 8;

export class Lookahead implements Predictor {
  readonly name = 'lookahead';
  private readonly shape: PredictorShape;
  private readonly hidden: number;
  private readonly depth: number;
  private readonly probe: RouterProbe;
  /** (depth, top-k): the share of guesses that were right, by distance and rank. */
  private readonly share: Float64Array;
  /** (depth, layers, top-k): guesses of one-row steps not yet compared; first is -1 where there is none. */
  private readonly guessed: Int32Array;
  private readonly guess: Int32Array;
  /** (experts): marks of a route while guesses are compared. */
  private readonly marked: Uint8Array;
  private streams: Streams | undefined;
  private singleRow = false;

  constructor(shape: PredictorShape, probe: RouterProbe, hidden: number, depth: number) {
    this.shape = shape;
    this.probe = probe;
    this.hidden = hidden;
    this.depth = depth;
    this.share = new Float64Array(depth * shape.expertsPerToken).fill(SHARE_AT_FIRST);
    this.guessed = new Int32Array(depth * shape.layers * shape.expertsPerToken).fill(-1);
    this.guess = new Int32Array(shape.expertsPerToken);
    this.marked = new Uint8Array(shape.experts);
  }

  observe(route: Route, streams: Streams | undefined): void {
    this.streams = streams;
    this.singleRow = route.rows === 1;
    if (this.singleRow) this.compare(route);
  }

  /** Layers of the next token cannot be asked: its stream is not known. */
  vote(layer: number, ahead: number, votes: Votes): void {
    const { streams, depth } = this;
    const { expertsPerToken } = this.shape;
    if (streams === undefined || ahead > depth || streams.layer + ahead !== layer) return;
    const shareAt = (ahead - 1) * expertsPerToken;
    for (let row = 0; row < streams.rows; row++) {
      const first = streams.first + row * this.hidden;
      this.probe.probe(layer, streams.values, first, this.guess, 0, expertsPerToken);
      for (let rank = 0; rank < expertsPerToken; rank++) {
        votes.add(this.guess[rank]!, this.share[shareAt + rank]!);
      }
    }
    if (this.singleRow) this.guessed.set(this.guess, this.guessedAt(ahead, layer));
  }

  private guessedAt(ahead: number, layer: number): number {
    return ((ahead - 1) * this.shape.layers + layer) * this.shape.expertsPerToken;
  }

  private compare({ layer, count, ids, first }: Route): void {
    const { expertsPerToken } = this.shape;
    for (let index = 0; index < count; index++) this.marked[ids[first + index]!] = 1;
    for (let ahead = 1; ahead <= this.depth; ahead++) {
      const at = this.guessedAt(ahead, layer);
      if (this.guessed[at]! < 0) continue;
      for (let rank = 0; rank < expertsPerToken; rank++) {
        const right = this.marked[this.guessed[at + rank]!]!;
        const shareAt = (ahead - 1) * expertsPerToken + rank;
        this.share[shareAt] = this.share[shareAt]! + NEWEST * (right - this.share[shareAt]!);
      }
      this.guessed[at] = -1;
    }
    for (let index = 0; index < count; index++) this.marked[ids[first + index]!] = 0;
  }
}
