/** What prediction gains and costs, exactly: the real scheduler on a virtual machine. */
import { describe, expect, it } from 'vitest';
import { NONE } from '../../dist/pipeline/eviction.js';
import { LANE_DEMAND, LANE_PREFETCH } from '../../dist/pipeline/fetch-queue.js';
import {
  AlwaysRight,
  AlwaysWrong,
  type MachineOptions,
  MostlyRight,
  randomTrace,
  VirtualMachine,
} from '../support/virtual-machine.js';

const MACHINE: MachineOptions = {
  layers: 12,
  experts: 96,
  expertsPerToken: 8,
  slots: 288,
  expertBytes: 3 * 1_638_400,
  packed: false,
  latencyMicros: 80,
  bytesPerSecond: 2.2e9,
  mixMicros: 4000,
  sharedMicros: 600,
  expertMicros: 700,
  mostUnderWay: 6,
  mode: 'none',
};
/** Experts above are never wanted. */
const WANTED = 64;

/** Slower, about as fast, and faster than the disk; one stretch per expert and three. */
const SHAPES = [0.25, 1, 4].flatMap((speed) =>
  [true, false].map((packed) => ({
    speed,
    packed,
    name: `computing x ${speed}, ${packed ? 'packed' : 'plain'}`,
  })),
);

const machineOf = (
  { speed, packed }: (typeof SHAPES)[number],
  mode: MachineOptions['mode'],
): MachineOptions => ({
  ...MACHINE,
  packed,
  mode,
  mixMicros: MACHINE.mixMicros * speed,
  sharedMicros: MACHINE.sharedMicros * speed,
  expertMicros: MACHINE.expertMicros * speed,
});

describe.each(SHAPES)('a controller ($name)', (shape) => {
  const trace = randomTrace(MACHINE, 150, 1, WANTED);
  const plain = new VirtualMachine(machineOf(shape, 'none'), []);
  const plainMicros = plain.run(trace);

  it('loses at most 3 % to a predictor that is always wrong', () => {
    const machine = new VirtualMachine(machineOf(shape, 'auto'), [new AlwaysWrong(WANTED, MACHINE.experts)]);
    const micros = machine.run(trace);
    const { counters } = machine.scheduler;
    expect(counters.usefulPrefetchBytes + counters.latePrefetchBytes).toBe(0);
    expect(counters.prefetches).toBeGreaterThan(0);
    expect(micros / plainMicros).toBeLessThanOrEqual(1.03);
    // It looks again, ever more rarely.
    const { probes, limit, activeSteps, steps } = machine.controller.report();
    expect(probes).toBeGreaterThan(1);
    expect(limit).toBeLessThanOrEqual(1);
    expect(activeSteps / steps).toBeLessThan(0.3);
  });

  it('hides at least 95 % of the smaller of read and compute time behind one that is always right', () => {
    const machine = new VirtualMachine(machineOf(shape, 'auto'), [new AlwaysRight(trace)]);
    const micros = machine.run(trace);
    const readMicros = (plain.scheduler.counters.bytesRead / MACHINE.bytesPerSecond) * 1e6;
    const hidden = readMicros + machine.computeMicros - micros;
    expect(hidden / Math.min(readMicros, machine.computeMicros)).toBeGreaterThanOrEqual(0.95);
    expect(machine.controller.report().limit).toBe(MACHINE.expertsPerToken);
  });

  it('a demand never waits for more than one chunk of prefetches', () => {
    for (const predictor of [new AlwaysRight(trace), new AlwaysWrong(WANTED, MACHINE.experts)]) {
      const machine = new VirtualMachine(machineOf(shape, 'fixed'), [predictor]);
      machine.run(trace.slice(0, 30));
      expect(machine.outOfTurn).toBe(0);
      expect(machine.scheduler.counters.prefetches).toBeGreaterThan(100);
      expect(machine.prefetchBytesAheadMost).toBeLessThanOrEqual(machine.chunkBytes + 2 * 4096);
    }
  });
});

describe('a model whose experts are all in memory', () => {
  it('is not predicted for, though one that does not fit was', () => {
    const trace = randomTrace(MACHINE, 150, 1, WANTED);
    const slots = MACHINE.layers * MACHINE.experts;
    const machine = new VirtualMachine({ ...MACHINE, slots, mode: 'auto' }, [
      new AlwaysRight([...trace, ...trace]),
    ]);
    machine.run(trace);
    const { controller, scheduler } = machine;
    expect(scheduler.counters.usefulPrefetchBytes).toBeGreaterThan(0);
    scheduler.beginRun();
    machine.run(trace);
    expect(controller.report().steps).toBe(150 * MACHINE.layers);
    expect(controller.report().activeSteps).toBe(0);
    expect(controller.allowed).toBe(0);
    expect(controller.limit).toBeGreaterThan(0);
  });
});

describe('6 layers of the 397B shape, a quarter of the experts in memory', () => {
  /** Times and disk of the machine of docs/findings.md, and what lookahead named right there, rank by rank. */
  const machine: MachineOptions = {
    layers: 6,
    experts: 512,
    expertsPerToken: 10,
    slots: 768,
    expertBytes: 5_455_872,
    packed: false,
    latencyMicros: 80,
    bytesPerSecond: 2.15e9,
    mixMicros: 6400,
    sharedMicros: 750,
    expertMicros: 370,
    mostUnderWay: 6,
    mode: 'none',
    predictorMicros: 1000,
  };
  const shares = [0.98, 0.94, 0.85, 0.8, 0.71, 0.66, 0.64, 0.54, 0.53, 0.4];
  const trace = randomTrace(machine, 120, 5, machine.experts);

  /** Of the larger of computing and reading, per layer, once the cache is full. */
  const ofBound = (mode: MachineOptions['mode']): number => {
    const rig = new VirtualMachine({ ...machine, mode }, [new MostlyRight(trace, machine.experts, shares)]);
    rig.run(trace.slice(0, 60));
    const before = { ...rig.scheduler.counters, computeMicros: rig.computeMicros };
    const micros = rig.run(trace.slice(60));
    const { demandBytesRead, usefulPrefetchBytes } = rig.scheduler.counters;
    const neededBytes =
      demandBytesRead + usefulPrefetchBytes - before.demandBytesRead - before.usefulPrefetchBytes;
    const readMicros = (neededBytes / machine.bytesPerSecond) * 1e6;
    return Math.max(readMicros, rig.computeMicros - before.computeMicros) / micros;
  };

  it('decodes at 0.85 of its bound and more with auto, at less than 0.75 without', () => {
    expect(ofBound('none')).toBeLessThan(0.75);
    expect(ofBound('auto')).toBeGreaterThan(0.85);
  });
});

describe('every prefetched byte', () => {
  it('is judged once: useful, late, wasted, or still in the slab', () => {
    const trace = randomTrace(MACHINE, 60, 3, WANTED);
    for (const predictor of [new AlwaysRight(trace), new AlwaysWrong(WANTED, MACHINE.experts)]) {
      const machine = new VirtualMachine({ ...MACHINE, mode: 'fixed' }, [predictor]);
      machine.run(trace);
      const c = machine.scheduler.counters;
      expect(c.hits + c.lateHits + c.misses).toBe(c.lookups);
      const judged = c.usefulPrefetchBytes + c.latePrefetchBytes + c.wastedPrefetchBytes;
      const prefetched = c.bytesRead - c.demandBytesRead + c.latePrefetchBytes;
      expect(judged).toBeLessThanOrEqual(prefetched);
      expect(prefetched - judged).toBeLessThanOrEqual(MACHINE.slots * MACHINE.expertBytes * 1.01);
    }
  });
});

describe('hints are asked for', () => {
  const askedBy = (machine: VirtualMachine): object[] => {
    const asked: object[] = [];
    machine.scheduler.askAhead = (layer) =>
      asked.push({
        layer,
        waiting: machine.queue.waiting(LANE_DEMAND),
        underWay: machine.queue.underWay(LANE_DEMAND),
        computedExperts: (machine.computeMicros - MACHINE.mixMicros - MACHINE.sharedMicros) / 700,
      });
    return asked;
  };

  it('once a layer, when its last reads are under way and what has arrived is computed', () => {
    const rig = new VirtualMachine({ ...MACHINE, mode: 'fixed' }, []);
    const asked = askedBy(rig);
    rig.layer(3, [1, 2, 3, 4, 5, 6, 7, 8]);
    // Two experts of three chunks each may be under way.
    expect(asked).toEqual([{ layer: 3, waiting: 0, underWay: MACHINE.mostUnderWay, computedExperts: 6 }]);
  });

  it('at once where there is nothing to read', () => {
    const rig = new VirtualMachine({ ...MACHINE, mode: 'fixed' }, []);
    rig.layer(3, [1, 2]);
    const asked = askedBy(rig);
    const before = rig.computeMicros;
    rig.scheduler.askAhead = (layer) => asked.push({ layer, computed: rig.computeMicros - before });
    rig.layer(3, [1, 2]);
    expect(asked).toEqual([{ layer: 3, computed: MACHINE.mixMicros }]);
  });
});

describe('an expert that a prefetch has evicted', () => {
  /** Twenty slots in use, of layer 1; expert 0 is the one that goes first. */
  const full = (): VirtualMachine => {
    const rig = new VirtualMachine(
      { ...MACHINE, layers: 4, slots: 20, expertsPerToken: 4, mode: 'fixed' },
      [],
    );
    for (let first = 0; first < 20; first += 4) rig.layer(1, [first, first + 1, first + 2, first + 3]);
    rig.scheduler.prefetch(3, 5);
    expect(rig.slab.find(1, 0)).toBe(NONE);
    return rig;
  };

  it('is its loss when the prefetch was read for nothing', () => {
    const rig = full();
    rig.idle(1e6);
    rig.layer(3, [6]);
    rig.layer(1, [0]);
    expect(rig.scheduler.counters.displacedBytes).toBeGreaterThan(0);
  });

  it("is nobody's when the prefetch was dropped: the next demand finds its slot empty", () => {
    const rig = full();
    rig.scheduler.runLayer(3, Int32Array.of(6), 1);
    rig.layer(1, [0]);
    const { prefetchesDropped, displacedBytes } = rig.scheduler.counters;
    expect({ prefetchesDropped, displacedBytes }).toEqual({ prefetchesDropped: 1, displacedBytes: 0 });
  });
});

describe('a hint', () => {
  const machine = (): VirtualMachine =>
    new VirtualMachine({ ...MACHINE, layers: 2, slots: 40, mode: 'fixed' }, [
      new AlwaysWrong(WANTED, MACHINE.experts),
    ]);

  it('for an absent expert is read; for one that is being read or is here, nothing happens', () => {
    const { scheduler, slab } = new VirtualMachine({ ...MACHINE, mode: 'fixed' }, []);
    scheduler.prefetch(3, 5);
    scheduler.prefetch(3, 5);
    expect(slab.find(3, 5)).not.toBe(NONE);
    expect(scheduler.counters).toMatchObject({ hints: 2, prefetches: 1, hintsPresent: 1 });
  });

  it('that comes in time makes a hit, one that is half read a late one', () => {
    const rig = new VirtualMachine({ ...MACHINE, mode: 'fixed' }, []);
    const chunks = 6;
    rig.scheduler.prefetch(3, 5);
    rig.idle(1e6);
    rig.scheduler.prefetch(3, 6);
    rig.idle(1200);
    rig.scheduler.runLayer(3, Int32Array.of(5, 6), 2);
    const { counters } = rig.scheduler;
    expect(counters).toMatchObject({ hits: 1, lateHits: 1, misses: 0, wastedPrefetchBytes: 0 });
    expect(counters.latePrefetchBytes).toBeGreaterThan(0);
    expect(counters.latePrefetchBytes).toBeLessThan(MACHINE.expertBytes * ((chunks - 1) / chunks));
    expect(counters.usefulPrefetchBytes + counters.latePrefetchBytes).toBeGreaterThanOrEqual(
      2 * MACHINE.expertBytes,
    );
  });

  it('for an evicted expert reads it again', () => {
    const rig = machine();
    rig.scheduler.prefetch(0, 1);
    rig.idle(1e6);
    // Six tokens of eight experts push it out of forty slots.
    for (let token = 0; token < 6; token++)
      rig.layer(
        1,
        Array.from({ length: 8 }, (_, index) => 8 * token + index),
      );
    expect(rig.slab.find(0, 1)).toBe(NONE);
    expect(rig.scheduler.counters.wastedPrefetchBytes).toBeGreaterThan(0);
    const { prefetches } = rig.scheduler.counters;
    rig.layer(0, [2]);
    rig.scheduler.prefetch(0, 1);
    expect(rig.scheduler.counters.prefetches).toBeGreaterThan(prefetches);
  });

  it('never takes a slot that is pinned, or the last ones that a layer needs', () => {
    const rig = new VirtualMachine({ ...MACHINE, slots: 20, mode: 'fixed' }, []);
    for (let expert = 0; expert < 8; expert++) rig.scheduler.prefetch(3, expert);
    expect(rig.scheduler.counters).toMatchObject({ prefetches: 4, hintsNoRoom: 4 });
    expect(rig.slab.evictable(3)).toBe(16);
  });

  it('for the layer that is being computed comes too late', () => {
    const rig = new VirtualMachine({ ...MACHINE, mode: 'fixed' }, []);
    rig.scheduler.takeHints = () => rig.scheduler.prefetch(3, 90);
    rig.scheduler.runLayer(3, Int32Array.of(1, 2), 2);
    const { hints, hintsStale, prefetches } = rig.scheduler.counters;
    expect(hints).toBeGreaterThan(2);
    expect({ hintsStale, prefetches }).toEqual({ hintsStale: hints, prefetches: 0 });
  });

  it('that the router does not follow is dropped before it reaches the disk', () => {
    const rig = new VirtualMachine({ ...MACHINE, mode: 'fixed' }, []);
    rig.scheduler.prefetch(3, 5);
    expect(rig.queue.waiting(LANE_PREFETCH)).toBe(6);
    rig.scheduler.runLayer(3, Int32Array.of(1), 1);
    const { bytesRead, demandBytesRead, prefetchesDropped } = rig.scheduler.counters;
    expect({ prefetchesDropped, bytesRead }).toEqual({ prefetchesDropped: 1, bytesRead: demandBytesRead });
  });

  it('of a prompt may be for as many experts as its rows want', () => {
    const rig = new VirtualMachine({ ...MACHINE, mode: 'fixed' }, []);
    rig.layer(
      2,
      Array.from({ length: 40 }, (_, expert) => expert),
    );
    for (let expert = 0; expert < 60; expert++) rig.scheduler.prefetch(3, expert);
    expect(rig.scheduler.counters).toMatchObject({ prefetches: 40, hintsOverLimit: 20 });
  });
});
