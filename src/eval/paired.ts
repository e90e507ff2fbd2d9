/**
 * Whether one setting is better than another, from runs that stand in pairs: one of each from the same round.
 *
 * The logarithms of the ratios are averaged without the fifth at either end, and Yuen's form of Student's t gives the
 * interval. Trimmed, because one run in thirty meets a hiccup of the machine and a single one of them would hide any
 * difference; t, because four pairs must be enough for a look: there this interval holds the truth in 95 of 100 cases, a
 * percentile bootstrap in 87 (from six pairs on both do).
 */
import { invariant } from '../errors.ts';
import type { Ratio } from './statistics.ts';

/** Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom. */
const T_95 = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131,
  2.12, 2.11, 2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
] as const;
const NORMAL_95 = 1.96;
const TRIMMED_SHARE = 0.2;

/** How many times larger the candidate is than the base, with its 95 % interval. A single pair says nothing: 0 to infinity. */
export function pairedRatio(base: readonly number[], candidate: readonly number[]): Ratio {
  invariant(base.length === candidate.length && base.length > 0, 'pairs have two halves');
  const logs = base.map((value, pair) => Math.log(candidate[pair]! / value)).sort((a, b) => a - b);
  const count = logs.length;
  const cut = Math.floor(TRIMMED_SHARE * count);
  const kept = logs.slice(cut, count - cut);
  const centre = mean(kept);
  const ratio = Math.exp(centre);
  if (count === 1) return { ratio, low: 0, high: Number.POSITIVE_INFINITY };
  // What was cut counts as if it were the outermost that was kept.
  const pulled = logs.map((value) => Math.min(kept.at(-1)!, Math.max(kept[0]!, value)));
  const middle = mean(pulled);
  const variance = pulled.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (count - 1);
  const error = Math.sqrt(variance / count) / (kept.length / count);
  const reach = (T_95[kept.length - 2] ?? NORMAL_95) * error;
  return { ratio, low: Math.exp(centre - reach), high: Math.exp(centre + reach) };
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;
