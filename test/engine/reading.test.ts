/**
 * Whatever is asked for, promoted, dropped or asked for again: an expert is computed only from its own bytes.
 *
 * The real queue, tickets, slab, scheduler and readers, on a file of random experts. In place of the backend stands a
 * check: every expert that is computed must be in its slot byte for byte.
 */
import { closeSync, openSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type ReadEngine, ReaderPool } from '../../dist/engine/stages.js';
import { loadIo } from '../../dist/native.js';
import { ControlBlock } from '../../dist/pipeline/control.js';
import { NONE, POLICIES, type Policy } from '../../dist/pipeline/eviction.js';
import { ExpertLayout, type LayerSource, slotBytesOf } from '../../dist/pipeline/expert-layout.js';
import { emptyRequest, FetchQueue } from '../../dist/pipeline/fetch-queue.js';
import { allocateShared } from '../../dist/pipeline/memory.js';
import { placeSlots, Slab, type SlabShape, slotCount } from '../../dist/pipeline/slab.js';
import { FAILURE_SYSTEM, readError, Tickets } from '../../dist/pipeline/tickets.js';
import { ExpertScheduler } from '../../dist/workers/expert-scheduler.js';
import { temporaryFolder } from '../support/folder.js';

const LAYERS = 4;
const EXPERTS = 24;
const TOP_K = 3;
/** Two sizes of experts, so two size classes; none a multiple of a page. */
const MATRIX_BYTES = [
  [7000, 7000, 9001],
  [20_000, 20_000, 50_003],
];

interface Rig {
  readonly scheduler: ExpertScheduler;
  readonly queue: FetchQueue;
  readonly tickets: Tickets;
  /** Called when the shared expert runs. */
  onShared: () => void;
  startReaders(): void;
  readonly computed: { layer: number; expert: number }[];
  /** Layers whose shared expert has run. */
  readonly shared: number[];
  /** What a GPU does as late as it may: reads the slots of every expert that it was given. */
  readBehind(): void;
  end(): Promise<{ bytesRead: number }>;
}

function layersOf(): { layers: LayerSource[]; fileBytes: number } {
  let offsetBytes = 64;
  const layers = Array.from({ length: LAYERS }, (_, layer) => ({
    spans: MATRIX_BYTES[layer % 2]!.map((byteLength) => {
      const span = { file: 0, offsetBytes, strideBytes: byteLength, byteLength };
      offsetBytes += EXPERTS * byteLength + 96;
      return span;
    }),
  })) as unknown as LayerSource[];
  return { layers, fileBytes: offsetBytes };
}

/** Incompressible and position-dependent, so that any misplaced byte shows. */
function randomBytes(count: number): Buffer {
  const bytes = Buffer.alloc(count);
  let state = 12345;
  for (let at = 0; at < count; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[at] = state >>> 24;
  }
  return bytes;
}

const { layers, fileBytes } = layersOf();
const content = randomBytes(fileBytes);
const path = join(temporaryFolder(), 'experts.bin');
writeFileSync(path, content);

interface RigOptions {
  readonly engine: ReadEngine;
  readonly split: number;
  readonly mostUnderWay: number;
  readonly policy: Policy;
  readonly direct: boolean;
  readonly queueSlots: number;
  readonly readsBehind: boolean;
  /** Without readers nothing that is queued is ever read. */
  readonly readers?: boolean;
  readonly readTimeoutMillis?: number;
  readonly readsUnion?: boolean;
}

function startRig(options: RigOptions): Rig {
  const { engine, split, mostUnderWay, policy, direct, queueSlots, readsBehind } = options;
  const io = loadIo();
  const { fd } = io.open(path, direct);
  const wakeFd = engine === 'uring' ? io.createWakeFd() : -1;
  const sizes = [slotBytesOf(layers[0]!), slotBytesOf(layers[1]!)] as const;
  const shape: SlabShape = {
    layers: LAYERS,
    experts: EXPERTS,
    classes: [
      { slotBytes: sizes[0], slots: 3 * TOP_K, firstSlot: 0 },
      { slotBytes: sizes[1], slots: 4 * TOP_K, firstSlot: 3 * TOP_K },
    ],
    classOfLayer: [0, 1, 0, 1],
  };
  const { segmentBytes, places } = placeSlots(shape);
  const segments = segmentBytes.map(allocateShared);
  const control = new ControlBlock();
  const queue = FetchQueue.create(queueSlots, mostUnderWay, wakeFd, (each) => io.signalWakeFd(each));
  const tickets = Tickets.create(slotCount(shape));
  const readers = new ReaderPool(engine, 4);
  const handles = {
    control: control.words,
    queue: queue.handle(),
    tickets: tickets.words,
    fds: [fd],
    segments,
  };
  const startReaders = (): void => readers.start(handles);
  if (options.readers ?? true) startReaders();
  const shared: number[] = [];
  const computed: { layer: number; expert: number }[] = [];
  const behind: (() => void)[] = [];
  const readBehind = (): void => {
    for (const look of behind.splice(0)) look();
  };
  const look = (layer: number, expert: number, segment: number, places: readonly number[]): void => {
    places.forEach((at, span) => {
      const { offsetBytes, strideBytes, byteLength } = layers[layer]!.spans[span]!;
      const from = offsetBytes + expert * strideBytes;
      const slot = Buffer.from(segments[segment]!.subarray(at, at + byteLength));
      if (!slot.equals(content.subarray(from, from + byteLength)))
        throw new Error(`wrong bytes: ${layer}/${expert}`);
    });
  };
  const slab = new Slab(shape, policy);
  const scheduler = new ExpertScheduler({
    backend: {
      shared: (layer) => {
        shared.push(layer);
        rig.onShared();
      },
      expert: (layer, expert, segment, gate, up, down) => {
        computed.push({ layer, expert });
        look(layer, expert, segment, [gate, up, down]);
        if (!readsBehind) return;
        behind.push(() => {
          // A slot that was given away may be overwritten any moment, even if it is not yet.
          if (slab.find(layer, expert) === NONE) throw new Error(`slot given away: ${layer}/${expert}`);
          look(layer, expert, segment, [gate, up, down]);
        });
      },
      flush: () => {},
      finish: readBehind,
    },
    readsBehind,
    slab,
    places,
    firstSegment: 0,
    layout: new ExpertLayout(layers, [fileBytes], split),
    queue,
    tickets,
    control,
    layers: LAYERS,
    experts: EXPERTS,
    expertsPerToken: TOP_K,
    readsUnion: options.readsUnion ?? false,
    readTimeoutMillis: options.readTimeoutMillis ?? 10_000,
    readError: (failure, layer, expert) => readError(failure, path, `${layer}/${expert}`, String),
  });
  const rig: Rig = {
    scheduler,
    queue,
    tickets,
    onShared: () => undefined,
    startReaders,
    computed,
    shared,
    readBehind,
    end: async () => {
      control.shutDown();
      queue.interrupt();
      const totals = await readers.end();
      io.close(fd);
      if (wakeFd >= 0) io.close(wakeFd);
      return { bytesRead: totals.reduce((sum, each) => sum + each.bytesRead, 0) };
    },
  };
  return rig;
}

const expertIds = fc.uniqueArray(fc.integer({ min: 0, max: EXPERTS - 1 }), {
  minLength: 1,
  maxLength: EXPERTS,
});
const hint = fc.record({ layer: fc.nat(LAYERS - 1), expert: fc.nat(EXPERTS - 1) });
/** `nextRows` of 0: what follows is not known. */
const step = fc.record({
  ids: expertIds,
  hints: fc.array(hint, { maxLength: 6 }),
  nextRows: fc.constantFrom(0, 1, 8),
});

describe.each(['threads', 'uring'] as const)('reading with %s', (engine) => {
  it('computes every wanted expert once, from its own bytes', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          engine: fc.constant(engine),
          split: fc.constantFrom(1, 2, 3, 4, 5, 8, 16),
          mostUnderWay: fc.constantFrom(1, 2, 4, 13),
          policy: fc.constantFrom(...POLICIES),
          direct: fc.boolean(),
          queueSlots: fc.constantFrom(2, 16, 128),
          readsBehind: fc.boolean(),
          readsUnion: fc.boolean(),
        }),
        fc.array(step, { minLength: 1, maxLength: 40 }),
        async (options, steps) => {
          const rig = startRig(options);
          try {
            steps.forEach(({ ids, hints, nextRows }, index) => {
              const layer = index % LAYERS;
              rig.computed.length = 0;
              // The routes of a layer come behind all work of the layer before, and its prefetches.
              rig.readBehind();
              // Twice each, as two rows of a batch would want them.
              const routes = Int32Array.from([...ids, ...ids]);
              const next = (layer + 1) % LAYERS;
              expect(rig.scheduler.runLayer(layer, routes, routes.length, next, nextRows)).toBe(true);
              const experts = rig.computed.map((each) => each.expert);
              expect(experts.toSorted((a, b) => a - b)).toEqual(ids.toSorted((a, b) => a - b));
              for (const each of hints) rig.scheduler.prefetch(each.layer, each.expert);
            });
            const { lookups, hits, lateHits, misses, prefetchFailures } = rig.scheduler.counters;
            expect(hits + lateHits + misses).toBe(lookups);
            expect(prefetchFailures).toBe(0);
          } finally {
            await rig.end();
          }
        },
      ),
      { numRuns: 12 },
    );
  });
});

describe('a queue that is shorter than what a layer misses', () => {
  it('does not keep the processor waiting: the shared expert runs before any read has ended', async () => {
    const rig = startRig({
      engine: 'threads',
      split: 1,
      mostUnderWay: 1,
      policy: 'lru',
      direct: false,
      queueSlots: 4,
      readsBehind: false,
      readers: false,
      readTimeoutMillis: 20,
    });
    try {
      expect(() => rig.scheduler.runLayer(0, Int32Array.from([1, 2, 3, 4, 5, 6]), 6)).toThrow(
        expect.objectContaining({ code: 'READ_TIMEOUT' }),
      );
      expect(rig.shared).toEqual([0]);
    } finally {
      await rig.end();
    }
  });
});

describe('a read that was begun ahead and fails when its expert has come to be wanted', () => {
  it('is done again', async () => {
    const rig = startRig({
      engine: 'threads',
      split: 1,
      mostUnderWay: 8,
      policy: 'lru',
      direct: false,
      queueSlots: 16,
      readsBehind: false,
      readers: false,
    });
    try {
      rig.scheduler.prefetch(0, 7);
      const request = emptyRequest();
      let chunks = 0;
      for (; rig.queue.tryPop(request); chunks++) {
        expect(rig.tickets.claim(request.ticket, request.claim)).toBe(true);
        rig.tickets.recordFailure(request.ticket, {
          kind: FAILURE_SYSTEM,
          errno: 5,
          file: 0,
          offsetBytes: request.offsetBytes,
          gotBytes: 0,
        });
        rig.queue.finish(request);
      }
      expect(chunks).toBeGreaterThan(0);
      rig.onShared = () => {
        for (let chunk = 0; chunk < chunks; chunk++) rig.tickets.completeChunk(request.ticket);
      };
      rig.startReaders();
      expect(rig.scheduler.runLayer(0, Int32Array.from([7]), 1)).toBe(true);
      expect(rig.computed).toEqual([{ layer: 0, expert: 7 }]);
      expect(rig.scheduler.counters.prefetchFailures).toBe(1);
    } finally {
      await rig.end();
    }
  });
});

describe('the file of random experts', () => {
  it('is what the rig compares with', () => {
    const file = openSync(path, 'r');
    const bytes = Buffer.alloc(100);
    readSync(file, bytes, 0, 100, 1000);
    closeSync(file);
    expect(bytes.equals(content.subarray(1000, 1100))).toBe(true);
  });
});
