/**
 * How far a model's probabilities are from those of a baseline, token by token of a text.
 *
 * The Kullback-Leibler divergence from the baseline's distribution to this one, in nats, over the whole vocabulary; whether
 * both find the same token likeliest; and by how much the probability of the text's own token differs.
 */
import { STEPS_PER_NAT } from './baseline.ts';
import { likeliest } from './likelihood.ts';
import { mean, quantile, standardDeviation } from './statistics.ts';

export interface Divergence {
  readonly rows: number;
  readonly meanKl: number;
  /** Standard error of the mean. */
  readonly meanKlError: number;
  readonly medianKl: number;
  readonly kl99: number;
  readonly mostKl: number;
  /** Share of the rows in which both find the same token likeliest. */
  readonly sameTop: number;
  readonly sameTopError: number;
  /** Of the probability of the text's token: root of the mean squared difference, and mean of the difference. */
  readonly rmsDifference: number;
  readonly meanDifference: number;
  /** The baseline's perplexity over the same tokens. */
  readonly basePerplexity: number;
  /**
   * Logarithm of this perplexity by the baseline's, and its standard error. Both score the same tokens, so their difference
   * is known far better than either of them.
   */
  readonly logRatio: number;
  readonly logRatioError: number;
}

/** exp(-code / STEPS_PER_NAT). */
const PROBABILITY = Float64Array.from({ length: 65536 }, (_, code) => Math.exp(-code / STEPS_PER_NAT));

export class DivergenceSum {
  private readonly kl: number[] = [];
  private readonly differences: number[] = [];
  private sameTop = 0;
  private baseNll = 0;
  private readonly nllDifferences: number[] = [];

  /** One row: the baseline's codes, this model's logits and their logSumExp, and the text's own token. */
  add(codes: Uint16Array, row: Float32Array, total: number, token: number): void {
    let mass = 0;
    let distance = 0;
    let top = 0xffff;
    for (let id = 0; id < codes.length; id++) {
      const code = codes[id]!;
      const probability = PROBABILITY[code]!;
      mass += probability;
      distance += probability * (-code / STEPS_PER_NAT - row[id]!);
      if (code < top) top = code;
    }
    // Rounding leaves a mass near 1; normalised, the divergence cannot fall below 0 but for float64's own rounding.
    this.kl.push(Math.max(0, distance / mass - Math.log(mass) + total));
    // Tokens within a step of each other are equally likely as far as the file knows.
    if (codes[likeliest(row)]! === top) this.sameTop++;
    const base = PROBABILITY[codes[token]!]! / mass;
    this.differences.push(Math.exp(row[token]! - total) - base);
    this.baseNll -= Math.log(base);
    this.nllDifferences.push(total - row[token]! + Math.log(base));
  }

  result(): Divergence {
    const { kl, differences } = this;
    const rows = kl.length;
    const sameTop = this.sameTop / rows;
    return {
      rows,
      meanKl: mean(kl),
      meanKlError: standardDeviation(kl) / Math.sqrt(rows),
      medianKl: quantile(kl, 0.5),
      kl99: quantile(kl, 0.99),
      mostKl: quantile(kl, 1),
      sameTop,
      sameTopError: Math.sqrt((sameTop * (1 - sameTop)) / rows),
      rmsDifference: Math.sqrt(mean(differences.map((difference) => difference ** 2))),
      meanDifference: mean(differences),
      basePerplexity: Math.exp(this.baseNll / rows),
      logRatio: mean(this.nllDifferences),
      logRatioError: standardDeviation(this.nllDifferences) / Math.sqrt(rows),
    };
  }
}
