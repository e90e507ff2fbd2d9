/**
 * The memory plan: what a budget is spent on, decided before anything is allocated.
 *
 * Dense weights, the context's KV cache and states, scratch and logits are what they are; the expert slab gets the rest,
 * up to the size of all experts. A budget that leaves less than top-k slots per size class is refused with the smallest
 * one that works. The plan counts what the model needs; Node and its threads come on top (about 200 MB).
 */
import { availableParallelism } from 'node:os';
import { MoestreamError } from '../errors.ts';
import { partsOf, type StridedPlace } from '../model/places.ts';
import type { ExpertTensors } from '../model/tensor-map.ts';
import type { BackendFootprint } from '../native.ts';
import { type LayerSource, SPANS, slotBytesOf } from './expert-layout.ts';
import { formatBytes } from './memory.ts';
import type { SlabShape, SlotClass } from './slab.ts';

export interface MemoryPlan {
  readonly budgetBytes: number;
  readonly denseBytes: number;
  readonly kvBytes: number;
  readonly stateBytes: number;
  readonly scratchBytes: number;
  readonly logitsBytes: number;
  readonly slabBytes: number;
  readonly slab: SlabShape;
  /** All experts of the model in slots. */
  readonly allExpertsBytes: number;
  /** The smallest budget that works with these settings. */
  readonly smallestBytes: number;
}

export interface PlanInput {
  readonly budgetBytes: number;
  readonly contextLength: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly layers: readonly ExpertTensors[];
  readonly denseBytes: number;
  readonly footprint: BackendFootprint;
  readonly logitsBytes: number;
}

export function defaultThreads(): number {
  return availableParallelism();
}

export function layerSource(experts: ExpertTensors): LayerSource {
  const matrices = SPANS.map((name) => partsOf<StridedPlace>(experts[name]));
  const spans = matrices.flat();
  if (spans.length === SPANS.length) return { spans };
  const first = matrices.map((_, index) => matrices.slice(0, index).flat().length);
  const sides = matrices.flatMap((parts, index) =>
    parts.length === 1 ? [-1, -1] : [first[index]! + 1, first[index]! + 2],
  );
  return { spans, roles: [...first, ...sides] };
}

export function planMemory(input: PlanInput): MemoryPlan {
  const { footprint, layers } = input;
  const fixedBytes =
    input.denseBytes + footprint.kvBytes + footprint.stateBytes + footprint.scratchBytes + input.logitsBytes;
  const slotBytes = layers.map((layer) => slotBytesOf(layerSource(layer)));
  const sizes = [...new Set(slotBytes)].sort((a, b) => a - b);
  const layersOf = sizes.map((size) => slotBytes.filter((bytes) => bytes === size).length);
  const smallestSlab = sizes.reduce((sum, size) => sum + size * input.expertsPerToken, 0);
  const allExpertsBytes = slotBytes.reduce((sum, bytes) => sum + bytes * input.experts, 0);
  const smallestBytes = fixedBytes + smallestSlab;
  if (input.budgetBytes < smallestBytes) {
    throw new MoestreamError(
      'PLAN_REFUSED',
      `the memory budget of ${formatBytes(input.budgetBytes)} is too small: this model needs at least ` +
        `${formatBytes(smallestBytes)} with a context of ${input.contextLength} (--memory ${smallestBytes})`,
      { hint: 'Raise --memory, or lower --context.' },
    );
  }
  const share = Math.min(1, (input.budgetBytes - fixedBytes) / allExpertsBytes);
  const classes = shareSlots(sizes, layersOf, input, share, input.budgetBytes - fixedBytes);
  return {
    budgetBytes: input.budgetBytes,
    denseBytes: input.denseBytes,
    kvBytes: footprint.kvBytes,
    stateBytes: footprint.stateBytes,
    scratchBytes: footprint.scratchBytes,
    logitsBytes: input.logitsBytes,
    slabBytes: classes.reduce((sum, each) => sum + each.slots * each.slotBytes, 0),
    slab: {
      layers: layers.length,
      experts: input.experts,
      classes,
      classOfLayer: slotBytes.map((bytes) => sizes.indexOf(bytes)),
    },
    allExpertsBytes,
    smallestBytes,
  };
}

/** Every class gets the same share of its experts, and at least top-k slots. */
function shareSlots(
  sizes: readonly number[],
  layersOf: readonly number[],
  { experts, expertsPerToken }: PlanInput,
  share: number,
  slabBudgetBytes: number,
): SlotClass[] {
  const slots = layersOf.map((layers) => Math.max(expertsPerToken, Math.floor(layers * experts * share)));
  const bytes = (): number => slots.reduce((sum, count, index) => sum + count * sizes[index]!, 0);
  // Raising a small class to top-k can overshoot; the class with the most slots gives them back.
  for (let overBytes = bytes() - slabBudgetBytes; overBytes > 0; overBytes = bytes() - slabBudgetBytes) {
    const largest = slots.indexOf(Math.max(...slots));
    slots[largest] = Math.max(expertsPerToken, slots[largest]! - Math.ceil(overBytes / sizes[largest]!));
  }
  let firstSlot = 0;
  return sizes.map((slotBytes, index) => {
    const each = { slotBytes, slots: slots[index]!, firstSlot };
    firstSlot += each.slots;
    return each;
  });
}
