/** How a stretch of time is divided: exact numbers in, exact numbers out. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TRACE } from '#dist/pipeline/trace.js';
import { Cover } from '#dist/profile/cover.js';
import { Distribution } from '#dist/profile/distribution.js';
import { addLap, isLap, noMillis, sumMillis } from '#dist/profile/parts.js';
import { depthOf } from '#dist/profile/profile.js';

const stretch = (beginMillis: number, endMillis: number): { beginMillis: number; endMillis: number } => ({
  beginMillis,
  endMillis,
});

describe('a cover', () => {
  it('joins what overlaps and answers in ascending order', () => {
    const cover = new Cover([stretch(5, 7), stretch(1, 3), stretch(2, 4), stretch(7, 8)]);
    expect(cover.totalMillis).toBe(6);
    expect(cover.overlapMillis(0, 2)).toBe(1);
    expect(cover.overlapMillis(2, 6)).toBe(3);
    expect(cover.overlapMillis(6, 6)).toBe(0);
    expect(cover.overlapMillis(6, 100)).toBe(2);
    expect(cover.overlapMillis(100, 200)).toBe(0);
  });

  it('agrees with counting the milliseconds one by one', () => {
    const pair = fc.tuple(fc.nat(40), fc.nat(10)).map(([begin, length]) => stretch(begin, begin + length));
    fc.assert(
      fc.property(fc.array(pair), fc.uniqueArray(fc.nat(55)), (stretches, cuts) => {
        const cover = new Cover(stretches);
        const inside = (at: number): boolean =>
          stretches.some(({ beginMillis, endMillis }) => beginMillis <= at && at < endMillis);
        const edges = cuts.toSorted((a, b) => a - b);
        for (let index = 1; index < edges.length; index++) {
          let counted = 0;
          for (let at = edges[index - 1]!; at < edges[index]!; at++) if (inside(at)) counted++;
          expect(cover.overlapMillis(edges[index - 1]!, edges[index]!)).toBe(counted);
        }
      }),
    );
  });
});

describe('parts', () => {
  it('divide waits by what went on meanwhile', () => {
    const parts = noMillis();
    const reading = new Cover([stretch(11, 14)]);
    const sampling = new Cover([stretch(21, 22)]);
    addLap(parts, TRACE.mix, 0, 10, reading, sampling);
    addLap(parts, TRACE.waitRead, 10, 15, reading, sampling);
    addLap(parts, TRACE.admit, 15, 16, reading, sampling);
    addLap(parts, TRACE.logits, 16, 20, reading, sampling);
    addLap(parts, TRACE.waitToken, 20, 24, reading, sampling);
    expect(parts).toEqual({ compute: 14, disk: 3, handOffs: 2 + 3, sampling: 1, scheduling: 1 });
    expect(sumMillis(parts)).toBe(24);
  });

  it('leave no kind of lap out', () => {
    const marks: readonly number[] = [TRACE.runBegin, TRACE.runEnd, TRACE.stepEnd, TRACE.issue];
    const others: readonly number[] = [
      ...[TRACE.read, TRACE.waitRow, TRACE.sample, TRACE.deliver],
      ...[TRACE.waitRoute, TRACE.predict, TRACE.text, TRACE.counter],
    ];
    for (const kind of Object.values(TRACE)) {
      expect(isLap(kind)).toBe(!marks.includes(kind) && !others.includes(kind));
      const parts = noMillis();
      const none = new Cover([]);
      if (isLap(kind)) addLap(parts, kind, 1, 3, none, none);
      expect(sumMillis(parts)).toBe(isLap(kind) ? 2 : 0);
    }
  });
});

describe('figures', () => {
  it('have percentiles within one per cent', () => {
    const found = new Distribution();
    for (let index = 1; index <= 1000; index++) found.add(index / 10);
    const { count, meanMillis, p50Millis, p90Millis, p99Millis, maxMillis } = found.figures;
    expect([count, maxMillis]).toEqual([1000, 100]);
    expect(meanMillis).toBeCloseTo(50.05, 6);
    for (const [value, exact] of [[p50Millis, 50], [p90Millis, 90], [p99Millis, 99]] as const) // biome-ignore format: one line
      expect(Math.abs(value - exact) / exact).toBeLessThan(0.011);
    expect(found.buckets.reduce((sum, bucket) => sum + bucket.count, 0)).toBe(1000);
  });

  it('are nothing for nothing', () => {
    const found = new Distribution();
    expect(found.figures.p99Millis).toBe(0);
    found.add(0);
    expect(found.figures).toMatchObject({ count: 1, p50Millis: 0, maxMillis: 0 });
  });

  it('count what is under way', () => {
    const reads = [stretch(0, 4), stretch(1, 2), stretch(2, 3)];
    expect(depthOf(reads).map(({ depth }) => depth)).toEqual([1, 2, 1, 2, 1, 0]);
  });
});
