/**
 * How long something took, many times: an HDR histogram for percentiles, and coarse buckets for drawing.
 *
 * Two significant digits: percentiles are within one per cent, at 35 KB per histogram, so that there can be one per layer.
 */
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';
import type { Bucket } from '../report/charts.ts';

const NANOS_PER_MILLI = 1e6;
/** Seventy minutes. */
const LONGEST_NANOS = 2 ** 42;
const DIGITS = 2;
/** Buckets for drawing: four to a doubling. */
const BUCKETS_PER_DOUBLING = 4;

export interface DistributionFigures {
  readonly count: number;
  readonly totalMillis: number;
  readonly meanMillis: number;
  readonly p50Millis: number;
  readonly p90Millis: number;
  readonly p99Millis: number;
  readonly maxMillis: number;
}

export class Distribution {
  totalMillis = 0;
  count = 0;
  private maxMillis = 0;
  private readonly histogram: RecordableHistogram = createHistogram({
    lowest: 1,
    highest: LONGEST_NANOS,
    figures: DIGITS,
  });
  private readonly drawn = new Map<number, number>();

  add(millis: number): void {
    this.count++;
    this.totalMillis += millis;
    this.maxMillis = Math.max(this.maxMillis, millis);
    const nanos = Math.min(LONGEST_NANOS, Math.max(1, Math.round(millis * NANOS_PER_MILLI)));
    this.histogram.record(nanos);
    const bucket = Math.floor(Math.log2(nanos) * BUCKETS_PER_DOUBLING);
    this.drawn.set(bucket, (this.drawn.get(bucket) ?? 0) + 1);
  }

  get figures(): DistributionFigures {
    // The histogram counts from one nanosecond: that is nothing.
    const at = (percentile: number): number => {
      const nanos = this.count === 0 ? 0 : this.histogram.percentile(percentile);
      return nanos <= 1 ? 0 : Math.min(this.maxMillis, nanos / NANOS_PER_MILLI);
    };
    return {
      count: this.count,
      totalMillis: this.totalMillis,
      meanMillis: this.count === 0 ? 0 : this.totalMillis / this.count,
      p50Millis: at(50),
      p90Millis: at(90),
      p99Millis: at(99),
      maxMillis: this.maxMillis,
    };
  }

  /** In milliseconds, from the first filled one to the last. */
  get buckets(): readonly Bucket[] {
    const filled = [...this.drawn.keys()];
    if (filled.length === 0) return [];
    const [first, last] = [Math.min(...filled), Math.max(...filled)];
    const edge = (bucket: number): number => 2 ** (bucket / BUCKETS_PER_DOUBLING) / NANOS_PER_MILLI;
    return Array.from({ length: last - first + 1 }, (_, index) => ({
      from: edge(first + index),
      to: edge(first + index + 1),
      count: this.drawn.get(first + index) ?? 0,
    }));
  }
}
