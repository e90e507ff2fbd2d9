/**
 * The experts that a layer chose the last time. The reference engines' predictor: 24 to 27 % of them come again, less than
 * a cache of any size already holds. Its confidence is the share that came again lately, per layer.
 */
import type { Predictor, PredictorShape, Route, Votes } from './predictor.ts';

/** Weight of the newest step in the share that came again. */
const NEWEST = 1 / 16;
const SHARE_AT_FIRST = 0.25;

export class Temporal implements Predictor {
  readonly name = 'temporal';
  private readonly experts: number;
  /** (layers, experts): the last union of each layer; and its length. */
  private readonly last: Int32Array;
  private readonly counts: Int32Array;
  /** (layers) */
  private readonly share: Float64Array;
  /** (experts): marks of the last union while it is compared. */
  private readonly marked: Uint8Array;

  constructor({ layers, experts }: PredictorShape) {
    this.experts = experts;
    this.last = new Int32Array(layers * experts);
    this.counts = new Int32Array(layers);
    this.share = new Float64Array(layers).fill(SHARE_AT_FIRST);
    this.marked = new Uint8Array(experts);
  }

  observe(route: Route): void {
    const { layer, count, ids, first } = route;
    const from = layer * this.experts;
    const before = this.counts[layer]!;
    for (let index = 0; index < before; index++) this.marked[this.last[from + index]!] = 1;
    let again = 0;
    for (let index = 0; index < count; index++) again += this.marked[ids[first + index]!]!;
    for (let index = 0; index < before; index++) this.marked[this.last[from + index]!] = 0;
    if (before > 0) this.share[layer] = this.share[layer]! + NEWEST * (again / before - this.share[layer]!);
    for (let index = 0; index < count; index++) this.last[from + index] = ids[first + index]!;
    this.counts[layer] = count;
  }

  vote(layer: number, _ahead: number, votes: Votes): void {
    const from = layer * this.experts;
    for (let index = 0; index < this.counts[layer]!; index++) {
      votes.add(this.last[from + index]!, this.share[layer]!);
    }
  }
}
