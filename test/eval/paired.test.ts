/** Paired ratios: known values, and intervals that hold what they promise. */
import { describe, expect, it } from 'vitest';
import { pairedRatio } from '#dist/eval/paired.js';
import { Random } from '#dist/workers/random.js';

describe('a paired ratio', () => {
  it('is the textbook interval for few pairs', () => {
    // Logs of the ratios: 0.1, 0.2, 0.3, 0.4. Mean 0.25, deviation 0.129099, t(3) 3.182: reach 0.205431.
    const found = pairedRatio([1, 1, 1, 1], [0.1, 0.2, 0.3, 0.4].map(Math.exp));
    expect(Math.log(found.ratio)).toBeCloseTo(0.25, 6);
    expect(Math.log(found.low)).toBeCloseTo(0.25 - 0.20543, 4);
    expect(Math.log(found.high)).toBeCloseTo(0.25 + 0.20543, 4);
  });

  it('says nothing of a single pair', () => {
    expect(pairedRatio([10], [12])).toEqual({
      ratio: expect.closeTo(1.2, 9),
      low: 0,
      high: Number.POSITIVE_INFINITY,
    });
  });

  it('is not moved by one hiccup', () => {
    const base = [10, 10.1, 9.9, 10, 10.05, 9.95, 10, 10.02];
    const candidate = base.map((value) => value * 1.1);
    candidate[3] = 2;
    const { ratio, low } = pairedRatio(base, candidate);
    expect(ratio).toBeCloseTo(1.1, 9);
    expect(low).toBeGreaterThan(1.09);
  });

  it('cancels what slows a whole round', () => {
    const slow = [1, 0.5, 0.9, 0.3, 1, 0.7];
    const { low, high } = pairedRatio(
      slow.map((factor) => 30 * factor),
      slow.map((factor) => 33 * factor),
    );
    expect(low).toBeCloseTo(1.1, 9);
    expect(high).toBeCloseTo(1.1, 9);
  });

  it.each([4, 6, 8, 10, 20])('holds the truth in about 95 of 100 cases, %i pairs', (count) => {
    const random = new Random(count);
    const normal = (): number =>
      Math.sqrt(-2 * Math.log(1 - random.next())) * Math.cos(2 * Math.PI * random.next());
    let held = 0;
    const cases = 2000;
    for (let each = 0; each < cases; each++) {
      const base = Array.from({ length: count }, () => 20 * Math.exp(0.05 * normal()));
      const candidate = base.map(() => 21 * Math.exp(0.05 * normal()));
      const { low, high } = pairedRatio(base, candidate);
      if (low <= 1.05 && 1.05 <= high) held++;
    }
    expect(held / cases).toBeGreaterThan(0.925);
    expect(held / cases).toBeLessThan(0.985);
  });
});
