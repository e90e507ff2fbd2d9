/**
 * The experts that a layer chose most often lately: counts that lose half their weight in 64 tokens. The confidence is the
 * weighted share of tokens that chose the expert.
 *
 * Instead of shrinking all counts at every step, each step counts for a little more than the one before; all are scaled
 * down when that grows large.
 */
import type { Predictor, PredictorShape, Route, Votes } from './predictor.ts';

const HALF_LIFE_STEPS = 64;
const GROWTH = 2 ** (1 / HALF_LIFE_STEPS);
const WEIGHT_MAX = 2 ** 64;

export class Frequency implements Predictor {
  readonly name = 'frequency';
  private readonly experts: number;
  /** (layers, experts) */
  private readonly counts: Float64Array;
  /** (layers): what the next step counts, and the sum of all steps. */
  private readonly weight: Float64Array;
  private readonly total: Float64Array;

  constructor({ layers, experts }: PredictorShape) {
    this.experts = experts;
    this.counts = new Float64Array(layers * experts);
    this.weight = new Float64Array(layers).fill(1);
    this.total = new Float64Array(layers);
  }

  observe({ layer, count, ids, first }: Route): void {
    const from = layer * this.experts;
    const weight = this.weight[layer]!;
    for (let index = 0; index < count; index++) {
      const at = from + ids[first + index]!;
      this.counts[at] = this.counts[at]! + weight;
    }
    this.total[layer] = this.total[layer]! + weight;
    this.weight[layer] = weight * GROWTH;
    if (this.weight[layer]! > WEIGHT_MAX) this.scaleDown(layer);
  }

  vote(layer: number, _ahead: number, votes: Votes): void {
    const total = this.total[layer]!;
    if (total === 0) return;
    const from = layer * this.experts;
    for (let expert = 0; expert < this.experts; expert++) {
      const count = this.counts[from + expert]!;
      if (count > 0) votes.add(expert, count / total);
    }
  }

  private scaleDown(layer: number): void {
    const scale = 1 / this.weight[layer]!;
    const from = layer * this.experts;
    for (let at = from; at < from + this.experts; at++) this.counts[at] = this.counts[at]! * scale;
    this.total[layer] = this.total[layer]! * scale;
    this.weight[layer] = 1;
  }
}
