/** What reading the next layer of a chunk ahead gains, and what it may not cost: the real scheduler on a virtual machine. */
import { describe, expect, it } from 'vitest';
import { NONE, POLICIES } from '../../dist/pipeline/eviction.js';
import { LANE_DEMAND, LANE_PREFETCH } from '../../dist/pipeline/fetch-queue.js';
import { type MachineOptions, VirtualMachine } from '../support/virtual-machine.js';

const MACHINE: MachineOptions = {
  layers: 6,
  experts: 96,
  expertsPerToken: 8,
  slots: 120,
  expertBytes: 3 * 1_638_400,
  packed: false,
  latencyMicros: 80,
  bytesPerSecond: 2.2e9,
  mixMicros: 80_000,
  sharedMicros: 8000,
  expertMicros: 1400,
  mostUnderWay: 6,
  mode: 'none',
};
const ROWS = 64;
/** Nearly all of 96 experts, in another order in every layer. */
const UNION = 90;

/** (ROWS, top-k) ids that name `count` experts; `first` and `seed` decide which and in what order. */
function routes(seed: number, count = UNION, first = 0): Int32Array {
  const { experts, expertsPerToken } = MACHINE;
  return Int32Array.from(
    { length: ROWS * expertsPerToken },
    (_, index) => (first + ((index * 7 + seed * 13) % count)) % experts,
  );
}

interface ChunkOptions {
  readonly count?: number;
  /** Rows of the chunk that follows. */
  readonly rowsAfter?: number;
}

/** Runs a chunk through all layers; returns the time it took. */
function chunk(rig: VirtualMachine, { count = UNION, rowsAfter = 0 }: ChunkOptions = {}): number {
  const { layers } = MACHINE;
  const began = rig.nowMicros;
  for (let layer = 0; layer < layers; layer++) {
    rig.mix();
    const isLast = layer === layers - 1;
    const ids = routes(layer, count);
    rig.scheduler.runLayer(layer, ids, ids.length, (layer + 1) % layers, isLast ? rowsAfter : ROWS);
  }
  return rig.nowMicros - began;
}

const rigOf = (options: Partial<MachineOptions> = {}): VirtualMachine =>
  new VirtualMachine({ ...MACHINE, readsUnion: true, ...options }, []);

describe('a chunk that wants nearly all experts', () => {
  it.each([0.25, 1, 4])('hides its reads behind mixers and routers, computing x %d', (speed) => {
    const shape = {
      mixMicros: MACHINE.mixMicros * speed,
      sharedMicros: MACHINE.sharedMicros * speed,
      expertMicros: MACHINE.expertMicros * speed,
    };
    const [plain, ahead] = [rigOf({ ...shape, readsUnion: false }), rigOf(shape)];
    const [plainMicros, aheadMicros] = [chunk(plain), chunk(ahead)];
    expect(ahead.scheduler.counters.bytesRead).toBeLessThanOrEqual(1.03 * plain.scheduler.counters.bytesRead);
    // Beyond the bound stands the first layer's mixer, before which nothing is known. Without reading ahead 1.08 and 1.24.
    const readMicros = (ahead.scheduler.counters.bytesRead / MACHINE.bytesPerSecond) * 1e6;
    const bound = Math.max(readMicros, ahead.computeMicros) + shape.mixMicros;
    expect(aheadMicros).toBeLessThanOrEqual(1.03 * bound);
    expect(aheadMicros).toBeLessThanOrEqual(plainMicros);
  });

  it('reads nothing of the next layer while a demand waits', () => {
    const rig = rigOf();
    chunk(rig, { rowsAfter: ROWS });
    expect(rig.outOfTurn).toBe(0);
    expect(rig.scheduler.counters.prefetches).toBeGreaterThan(100);
    expect(rig.prefetchBytesAheadMost).toBeLessThanOrEqual(2 * (rig.chunkBytes + 4096));
  });

  it('goes on with the first layer when another chunk follows, and not otherwise', () => {
    const present = (rig: VirtualMachine): number =>
      Array.from({ length: MACHINE.experts }, (_, expert) => rig.slab.find(0, expert)).filter(
        (slot) => slot !== NONE,
      ).length;
    const [ends, goesOn] = [rigOf(), rigOf()];
    chunk(ends);
    chunk(goesOn, { rowsAfter: ROWS });
    expect(ends.queue.waiting(LANE_PREFETCH)).toBe(0);
    expect(goesOn.queue.waiting(LANE_PREFETCH)).toBeGreaterThan(0);
    expect(present(goesOn)).toBeGreaterThan(present(ends) + 20);
  });

  it('takes no hint for the next layer, and one row after it does', () => {
    const rig = rigOf({ mode: 'fixed' });
    const { scheduler } = rig;
    const ids = routes(0);
    scheduler.takeHints = () => scheduler.prefetch(1, 95);
    scheduler.runLayer(0, ids, ids.length, 1, ROWS);
    expect(scheduler.wantsHints).toBe(false);
    expect(scheduler.counters.hints).toBeGreaterThan(0);
    expect(scheduler.counters.hintsOverLimit).toBe(scheduler.counters.hints);
    scheduler.runLayer(0, ids.subarray(0, MACHINE.expertsPerToken), MACHINE.expertsPerToken, 1, 1);
    expect(scheduler.wantsHints).toBe(true);
    expect(scheduler.counters.hintsOverLimit).toBeLessThan(scheduler.counters.hints);
  });

  it.each([
    ['of a few rows', { rowsAfter: 0, nextRows: 2, count: UNION }],
    ['that wants less than half of a layer', { rowsAfter: 0, nextRows: ROWS, count: 40 }],
  ])('reads nothing ahead for a layer %s', (_what, { nextRows, count }) => {
    const rig = rigOf();
    const ids = routes(0, count);
    rig.scheduler.runLayer(0, ids, ids.length, 1, nextRows);
    expect(rig.scheduler.counters.prefetches).toBe(0);
  });

  it('begins with what the layer chose most often', () => {
    const rig = rigOf({ slots: 24 });
    const often = [70, 20, 45];
    const all = routes(0, MACHINE.experts);
    rig.scheduler.runLayer(1, Int32Array.from([...all, ...often.flatMap((each) => [each, each, each])]), 521);
    const ids = routes(1);
    rig.scheduler.runLayer(0, ids, ids.length, 1, ROWS);
    for (const expert of often) expect(rig.slab.find(1, expert)).not.toBe(NONE);
  });
});

describe('the window of a chunk', () => {
  it.each(POLICIES)('keeps the rest of the cache for the next chunk with %s', (policy) => {
    const kept = MACHINE.slots - MACHINE.slots / 2;
    for (const readsUnion of [false, true]) {
      const rig = rigOf({ policy, readsUnion });
      for (let count = 0; count < 3; count++) chunk(rig, { rowsAfter: ROWS });
      const before = rig.scheduler.counters.bytesRead;
      chunk(rig, { rowsAfter: ROWS });
      const readExperts = (rig.scheduler.counters.bytesRead - before) / MACHINE.expertBytes;
      const wanted = MACHINE.layers * UNION;
      expect(readExperts).toBeLessThanOrEqual(1.02 * (wanted - kept));
    }
  });

  it('is all that what is read ahead may take: nobody who is kept leaves', () => {
    const rig = rigOf();
    for (let count = 0; count < 3; count++) chunk(rig, { rowsAfter: ROWS });
    const keptOf = (layer: number): number[] =>
      Array.from({ length: MACHINE.experts }, (_, expert) => expert).filter(
        (expert) => rig.slab.find(layer, expert) !== NONE,
      );
    const before = [2, 3, 4].map(keptOf);
    for (const layer of [0, 1]) {
      rig.mix();
      const ids = routes(layer);
      rig.scheduler.runLayer(layer, ids, ids.length, layer + 1, ROWS);
    }
    [2, 3, 4].forEach((layer, index) => {
      expect(keptOf(layer)).toEqual(expect.arrayContaining(before[index]!));
    });
  });

  it.each([1, 2, 8, 20])('may be as small as %d slots', (slots) => {
    for (const readsUnion of [false, true]) {
      const rig = rigOf({ slots, readsUnion });
      for (let count = 0; count < 2; count++) chunk(rig, { rowsAfter: ROWS });
      const { lookups, hits, lateHits, misses } = rig.scheduler.counters;
      expect([lookups, hits + lateHits + misses]).toEqual(Array(2).fill(2 * MACHINE.layers * UNION));
    }
  });
});

describe('what was read ahead', () => {
  it('and is not wanted leaves first, and is counted once', () => {
    const rig = rigOf({ layers: 2 });
    const first = routes(0);
    rig.scheduler.runLayer(0, first, first.length, 1, ROWS);
    rig.idle(1e6);
    const ahead = rig.scheduler.counters.prefetches;
    // The next layer wants but eight.
    const other = routes(1, 8, 88);
    rig.scheduler.runLayer(1, other, other.length, 0, 0);
    rig.scheduler.runLayer(0, first, first.length);
    const c = rig.scheduler.counters;
    expect(ahead).toBeGreaterThan(20);
    expect(c.wastedPrefetchBytes).toBeGreaterThan(0.5 * ahead * MACHINE.expertBytes);
    const judged = c.usefulPrefetchBytes + c.latePrefetchBytes + c.wastedPrefetchBytes;
    expect(judged).toBeLessThanOrEqual(c.bytesRead - c.demandBytesRead + c.latePrefetchBytes);
  });

  it('has nothing to do with what the controller thinks of hints', () => {
    const rig = rigOf({ mode: 'auto' });
    for (let count = 0; count < 20; count++) chunk(rig, { rowsAfter: ROWS });
    expect(rig.scheduler.counters.usefulPrefetchBytes).toBeGreaterThan(0);
    expect(rig.controller.report()).toMatchObject({ raised: 0, lowered: 0 });
  });

  it('gives its slots back when the run ends before its layer comes', () => {
    const rig = rigOf();
    const ids = routes(0);
    rig.scheduler.runLayer(0, ids, ids.length, 1, ROWS);
    expect(rig.slab.evictable(0)).toBeLessThan(MACHINE.slots);
    rig.idle(1e6);
    rig.scheduler.beginRun();
    rig.scheduler.runLayer(2, ids.slice(0, 8), 8);
    expect(rig.slab.evictable(0)).toBe(MACHINE.slots);
    expect(rig.queue.underWay(LANE_DEMAND) + rig.queue.underWay(LANE_PREFETCH)).toBe(0);
  });
});
