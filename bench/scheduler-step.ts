/**
 * One layer's scheduling by itself: the real scheduler over a slab that holds every expert, a backend that does nothing, no
 * other thread. What is left is our own TypeScript, so two builds of it can be told apart to a few nanoseconds where
 * whole tokens differ by 5 % from round to round.
 */
import { pathToFileURL } from 'node:url';
import type * as Control from '#dist/pipeline/control.js';
import type * as Layout from '#dist/pipeline/expert-layout.js';
import type * as Queue from '#dist/pipeline/fetch-queue.js';
import type * as SlabModule from '#dist/pipeline/slab.js';
import type * as TicketModule from '#dist/pipeline/tickets.js';
import type * as Scheduler from '#dist/workers/expert-scheduler.js';

const LAYERS = 6;
const EXPERTS = 64;
const EXPERTS_PER_TOKEN = 10;
const EXPERT_BYTES = 3 * 4096;

/** Hooks in `runLayer` for ten experts that are here: admit, shared, hints, and two for each expert. */
export const HOOKS_OF_A_STEP = 3 + 2 * EXPERTS_PER_TOKEN;

/** Runs so many layer steps with the build in `dist`; returns nanoseconds per step. */
export type LayerSteps = (steps: number) => number;

export async function layerSteps(dist: string): Promise<LayerSteps> {
  const load = (path: string): Promise<unknown> => import(pathToFileURL(`${dist}/${path}`).href);
  const { ControlBlock } = (await load('pipeline/control.js')) as typeof Control;
  const { ExpertLayout } = (await load('pipeline/expert-layout.js')) as typeof Layout;
  const { FetchQueue } = (await load('pipeline/fetch-queue.js')) as typeof Queue;
  const { placeSlots, Slab } = (await load('pipeline/slab.js')) as typeof SlabModule;
  const { Tickets } = (await load('pipeline/tickets.js')) as typeof TicketModule;
  const { ExpertScheduler } = (await load('workers/expert-scheduler.js')) as typeof Scheduler;
  const slots = LAYERS * EXPERTS;
  const shape = {
    layers: LAYERS,
    experts: EXPERTS,
    classes: [{ slotBytes: EXPERT_BYTES, slots, firstSlot: 0 }],
    classOfLayer: Array.from({ length: LAYERS }, () => 0),
  };
  const spans = [0, 1, 2].map((span) => ({
    file: 0,
    byteLength: 4096,
    strideBytes: EXPERT_BYTES,
    offsetBytes: span * 4096,
  }));
  const slab = new Slab(shape, 'lfru');
  for (let layer = 0; layer < LAYERS; layer++) {
    for (let expert = 0; expert < EXPERTS; expert++) slab.markReady(slab.admit(layer, expert));
  }
  const scheduler = new ExpertScheduler({
    backend: { shared: () => {}, expert: () => {}, flush: () => {}, finish: () => {} },
    readsBehind: false,
    readsUnion: false,
    slab,
    places: placeSlots(shape).places,
    firstSegment: 0,
    layout: new ExpertLayout(
      Array.from({ length: LAYERS }, () => ({ spans })),
      [Number.MAX_SAFE_INTEGER],
      1,
    ),
    queue: FetchQueue.create(512, 6),
    tickets: Tickets.create(slots),
    control: new ControlBlock(),
    layers: LAYERS,
    experts: EXPERTS,
    expertsPerToken: EXPERTS_PER_TOKEN,
    readTimeoutMillis: 1000,
    readError: (failure) => new Error(`a read failed: ${failure.kind}`) as never,
  });
  const ids = new Int32Array(EXPERTS_PER_TOKEN);
  let step = 0;
  return (steps) => {
    const beganMillis = performance.now();
    for (let count = 0; count < steps; count++, step++) {
      for (let index = 0; index < EXPERTS_PER_TOKEN; index++) ids[index] = (7 * step + 5 * index) % EXPERTS;
      scheduler.runLayer(step % LAYERS, ids, EXPERTS_PER_TOKEN);
    }
    return ((performance.now() - beganMillis) * 1e6) / steps;
  };
}
