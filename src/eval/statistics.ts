/**
 * What may be said of a handful of measurements.
 *
 * Times on a shared machine have long tails, so medians carry the comparisons and means are shown because people ask for
 * them. Intervals come from the percentile bootstrap: no shape is assumed, and the random numbers are seeded, so that the
 * same measurements give the same interval. With fewer than five values it is narrower than it should be: the
 * values seen are all it knows.
 */
import { invariant } from '../errors.ts';
import { Random } from '../workers/random.ts';

export interface Interval {
  readonly low: number;
  readonly high: number;
}

export interface Summary {
  readonly count: number;
  readonly mean: number;
  /** Of a sample: divided by count - 1. 0 for a single value. */
  readonly standardDeviation: number;
  readonly median: number;
  /** The median distance from the median. */
  readonly medianAbsoluteDeviation: number;
  readonly least: number;
  readonly most: number;
}

export interface BootstrapOptions {
  /** Default 0.95. */
  readonly confidence?: number;
  /** Default 2000. */
  readonly resamples?: number;
  /** Default 1. */
  readonly seed?: number;
}

export type Statistic = (values: readonly number[]) => number;

export function mean(values: readonly number[]): number {
  invariant(values.length > 0, 'a mean is of at least one value');
  const rough = values.reduce((sum, value) => sum + value, 0) / values.length;
  // Once more over what is left: a large sum has rounded the small digits away.
  return rough + values.reduce((sum, value) => sum + (value - rough), 0) / values.length;
}

export function standardDeviation(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const centre = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1));
}

/** The value below which that share lies, between neighbours in a straight line (R's type 7, NumPy's default). */
export function quantile(values: readonly number[], share: number): number {
  invariant(values.length > 0 && share >= 0 && share <= 1, 'a quantile is a share of at least one value');
  return quantileOfSorted(Float64Array.from(values).sort(), share);
}

function quantileOfSorted(sorted: Float64Array, share: number): number {
  const at = share * (sorted.length - 1);
  const below = sorted[Math.floor(at)]!;
  const above = sorted[Math.ceil(at)]!;
  return below + (above - below) * (at - Math.floor(at));
}

export const median = (values: readonly number[]): number => quantile(values, 0.5);

export function medianAbsoluteDeviation(values: readonly number[]): number {
  const centre = median(values);
  return median(values.map((value) => Math.abs(value - centre)));
}

export function summarise(values: readonly number[]): Summary {
  return {
    count: values.length,
    mean: mean(values),
    standardDeviation: standardDeviation(values),
    median: median(values),
    medianAbsoluteDeviation: medianAbsoluteDeviation(values),
    least: values.reduce((least, value) => Math.min(least, value)),
    most: values.reduce((most, value) => Math.max(most, value)),
  };
}

/** The interval in which the statistic of such values lies. */
export function bootstrapInterval(
  values: readonly number[],
  options: BootstrapOptions & { readonly statistic?: Statistic } = {},
): Interval {
  invariant(values.length > 0, 'an interval is of at least one value');
  const { statistic = median } = options;
  return resample(values.length, options, (picks) => statistic(Array.from(picks, (pick) => values[pick]!)));
}

export interface Ratio extends Interval {
  /** Candidate by base. */
  readonly ratio: number;
}

/**
 * How much larger the candidate is than the base: the ratio of their medians. The two stand in pairs, one of each from the
 * same round, and are resampled in pairs, so that what slows a whole round cancels out.
 */
export function bootstrapRatio(
  base: readonly number[],
  candidate: readonly number[],
  options: BootstrapOptions = {},
): Ratio {
  invariant(base.length === candidate.length && base.length > 0, 'pairs have two halves');
  const of = (values: readonly number[], picks: Uint32Array): number[] =>
    Array.from(picks, (pick) => values[pick]!);
  const interval = resample(
    base.length,
    options,
    (picks) => median(of(candidate, picks)) / median(of(base, picks)),
  );
  return { ratio: median(candidate) / median(base), ...interval };
}

function resample(
  count: number,
  { confidence = 0.95, resamples = 2000, seed = 1 }: BootstrapOptions,
  statistic: (picks: Uint32Array) => number,
): Interval {
  invariant(confidence > 0 && confidence < 1 && resamples > 0, 'a confidence is between 0 and 1');
  const random = new Random(seed);
  const picks = new Uint32Array(count);
  const found = new Float64Array(resamples);
  for (let round = 0; round < resamples; round++) {
    for (let index = 0; index < count; index++) picks[index] = Math.floor(random.next() * count);
    found[round] = statistic(picks);
  }
  found.sort();
  const tail = (1 - confidence) / 2;
  return { low: quantileOfSorted(found, tail), high: quantileOfSorted(found, 1 - tail) };
}
