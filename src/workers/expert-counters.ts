/**
 * What one run did with experts: the numbers behind `--json`, profiles, benchmarks and the prefetch controller.
 *
 * A prefetch's bytes are counted once, when it is decided what they were good for. `usefulPrefetchBytes` +
 * `latePrefetchBytes` + `wastedPrefetchBytes` is what was prefetched less what lies in the slab and may still be wanted.
 */
export interface ExpertCounters {
  /** Experts wanted, once per layer and step however many rows want them. `hits` + `lateHits` + `misses`. */
  lookups: number;
  hits: number;
  /** Wanted while a prefetch was still reading them: partial hits. */
  lateHits: number;
  misses: number;
  /** Bytes that readers were told to read, less those of chunks that were taken back in time. */
  bytesRead: number;
  /** Of `bytesRead`, what the router had asked for when it was queued. */
  demandBytesRead: number;
  prefetches: number;
  /** Prefetches that nobody wanted any more before all of their chunks had reached the disk. */
  prefetchesDropped: number;
  prefetchFailures: number;
  /** Read ahead and then wanted: had arrived, or was under way, when the router asked. */
  usefulPrefetchBytes: number;
  /** Of prefetches that were wanted: chunks that no reader had taken by then. Read as demands. */
  latePrefetchBytes: number;
  /** Read ahead and evicted, or dropped half read, before anybody wanted it. */
  wastedPrefetchBytes: number;
  /** Read on demand because a prefetch that nobody had wanted by then had evicted it. */
  displacedBytes: number;
  /** Chunks of unwanted prefetches that were under way when a layer's demands were queued: what they waited for. */
  delayedBytes: number;
  /** Hints that came from the predictor. The next four say what became of those that were not read. */
  hints: number;
  /** The expert was in the slab, or being read. */
  hintsPresent: number;
  /** Its layer had been routed before the hint came. */
  hintsStale: number;
  /** More than the limit in force, the controller's or the one that is fixed. */
  hintsOverLimit: number;
  /** No slot could be spared, or the lane was full. */
  hintsNoRoom: number;
  /** The stall: time in which compute had nothing to do but wait for a read. */
  waitMicros: number;
}

export const newCounters = (): ExpertCounters => ({
  lookups: 0,
  hits: 0,
  lateHits: 0,
  misses: 0,
  bytesRead: 0,
  demandBytesRead: 0,
  prefetches: 0,
  prefetchesDropped: 0,
  prefetchFailures: 0,
  usefulPrefetchBytes: 0,
  latePrefetchBytes: 0,
  wastedPrefetchBytes: 0,
  displacedBytes: 0,
  delayedBytes: 0,
  hints: 0,
  hintsPresent: 0,
  hintsStale: 0,
  hintsOverLimit: 0,
  hintsNoRoom: 0,
  waitMicros: 0,
});

/** What a part of a run added to its counters. */
export function countersSince(now: ExpertCounters, before: ExpertCounters): ExpertCounters {
  const difference = newCounters();
  for (const name of Object.keys(difference) as (keyof ExpertCounters)[]) {
    difference[name] = now[name] - before[name];
  }
  return difference;
}
