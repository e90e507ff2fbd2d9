/** Statistics against data whose answers are known: NIST's reference sets, textbook numbers, and simulation. */
import { describe, expect, it } from 'vitest';
import * as statistics from '#dist/eval/statistics.js';
import { Random } from '#dist/workers/random.js';

const { mean, standardDeviation, median, quantile, medianAbsoluteDeviation, summarise } = statistics;

/** NIST StRD univariate: a first value and two that alternate, around a mean that swallows the digits. */
const numAcc = (first: number, low: number, high: number): number[] => [
  first,
  ...Array.from({ length: 1000 }, (_, index) => (index % 2 === 0 ? low : high)),
];

describe('known data', () => {
  it.each([
    ['NumAcc1', [10000001, 10000003, 10000002], 10000002, 1],
    ['NumAcc2', numAcc(1.2, 1.1, 1.3), 1.2, 0.1],
    ['NumAcc3', numAcc(1000000.2, 1000000.1, 1000000.3), 1000000.2, 0.1],
    ['NumAcc4', numAcc(10000000.2, 10000000.1, 10000000.3), 10000000.2, 0.1],
  ])('%s of NIST', (_, values, expectedMean, deviation) => {
    expect(mean(values)).toBeCloseTo(expectedMean, 8);
    expect(standardDeviation(values)).toBeCloseTo(deviation, 7);
  });

  it('quantiles as R and NumPy have them', () => {
    const values = [7, 1, 10, 4, 3, 9, 2, 8, 6, 5];
    expect([0, 0.1, 0.25, 0.5, 0.9, 1].map((share) => quantile(values, share))).toEqual([
      1, 1.9, 3.25, 5.5, 9.1, 10,
    ]);
    expect(median([3, 1, 2])).toBe(2);
    expect(quantile([5], 0.99)).toBe(5);
  });

  it('median absolute deviation', () => {
    expect(medianAbsoluteDeviation([1, 1, 2, 2, 4, 6, 9])).toBe(1);
    expect(summarise([4, 2, 9])).toEqual({
      count: 3,
      mean: 5,
      standardDeviation: Math.sqrt(13),
      median: 4,
      medianAbsoluteDeviation: 2,
      least: 2,
      most: 9,
    });
    expect(summarise([4]).standardDeviation).toBe(0);
  });
});

/** Normal numbers by the polar method. */
function normals(random: Random, count: number): number[] {
  return Array.from({ length: count }, () => {
    for (;;) {
      const [x, y] = [2 * random.next() - 1, 2 * random.next() - 1];
      const square = x * x + y * y;
      if (square > 0 && square < 1) return x * Math.sqrt((-2 * Math.log(square)) / square);
    }
  });
}

describe('bootstrap', () => {
  it('covers the truth about as often as it says', () => {
    const random = new Random(11);
    let covered = 0;
    const trials = 300;
    for (let trial = 0; trial < trials; trial++) {
      const values = normals(random, 25).map((value) => 10 + value);
      const { low, high } = statistics.bootstrapInterval(values, {
        statistic: mean,
        resamples: 400,
        seed: trial,
      });
      if (low <= 10 && 10 <= high) covered++;
    }
    // 95 % promised; the percentile bootstrap of 25 values is known to keep about 93 %.
    expect(covered / trials).toBeGreaterThan(0.88);
    expect(covered / trials).toBeLessThan(0.99);
  });

  it('gives the same interval for the same seed, and a wider one for more confidence', () => {
    const values = normals(new Random(3), 20);
    const of = (confidence: number) => statistics.bootstrapInterval(values, { confidence, seed: 5 });
    expect(of(0.95)).toEqual(of(0.95));
    expect(of(0.99).high - of(0.99).low).toBeGreaterThan(of(0.8).high - of(0.8).low);
    expect(statistics.bootstrapInterval([3])).toEqual({ low: 3, high: 3 });
  });

  it('of a ratio: what slows a whole round cancels out', () => {
    const random = new Random(8);
    const rounds = Array.from({ length: 12 }, () => 50 + 50 * random.next());
    const noise = normals(random, 24).map((value) => 1 + value / 200);
    const base = rounds.map((speed, round) => speed * noise[round]!);
    const candidate = rounds.map((speed, round) => 1.05 * speed * noise[round + 12]!);
    const paired = statistics.bootstrapRatio(base, candidate);
    expect(paired.low).toBeGreaterThan(1.02);
    expect(paired.high).toBeLessThan(1.08);
    const alone = statistics.bootstrapInterval(candidate);
    expect((alone.high - alone.low) / median(candidate)).toBeGreaterThan(5 * (paired.high - paired.low));
  });

  it('says that nothing differs where nothing does, in 19 of 20 cases', () => {
    let wrong = 0;
    for (let seed = 0; seed < 100; seed++) {
      const random = new Random(seed);
      const [a, b] = [normals(random, 15), normals(random, 15)].map((all) => all.map((value) => 100 + value));
      const { low, high } = statistics.bootstrapRatio(a!, b!, { resamples: 400 });
      if (low > 1 || high < 1) wrong++;
    }
    expect(wrong).toBeLessThan(12);
  });
});
