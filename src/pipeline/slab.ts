/**
 * The expert cache: memory cut in slots of one expert each, and the directory that says what is where.
 *
 * Compute is the only writer of everything here, so nothing needs a lock; readers know a slot only as a ticket and a
 * place to put bytes. A slot is EMPTY, LOADING (its ticket is pending), or READY. Pinned slots and loading slots are
 * never evicted: the eviction policy does not even know them, so finding a victim takes constant time, however large the
 * slab is (a 397B model in 64 GB has 10,000 slots).
 *
 * Experts of different layers may have different sizes (layer 27 of Unsloth's 397B mix is 35 % larger), so slots come in
 * size classes, each with a policy of its own.
 *
 * A chunk of a prompt that wants more than the slab holds must not push out everything: of each class a part is the
 * window that such a chunk streams through, the rest keeps what it has (src/workers/chunk-cache.ts). The window is half
 * of the slots, and no larger than one layer.
 */
import { invariant } from '../errors.ts';
import { createStock, NONE, type Policy, type SlotStock } from './eviction.ts';
import { allocateWords, roundDown, SEGMENT_BYTES_MAX } from './memory.ts';

export const SLOT_EMPTY = 0;
export const SLOT_LOADING = 1;
export const SLOT_READY = 2;

/** Slots of one size. Slots are numbered through all classes. */
export interface SlotClass {
  readonly slotBytes: number;
  readonly slots: number;
  readonly firstSlot: number;
}

/** The slab's shape: decided by the plan, before anything is allocated. */
export interface SlabShape {
  readonly layers: number;
  readonly experts: number;
  readonly classes: readonly SlotClass[];
  /** The class of each layer. */
  readonly classOfLayer: readonly number[];
}

/** Where each slot's memory is. */
export interface SlotPlace {
  readonly segment: number;
  readonly bytes: number;
}

export function slotCount(shape: SlabShape): number {
  return shape.classes.reduce((sum, each) => sum + each.slots, 0);
}

/** One segment of shared memory must not be so large that losing huge pages in one place costs the whole slab. */
const SEGMENT_BYTES_WANTED = 1024 ** 3;

/** Lays the slots out in segments. Returns the segments' sizes and the place of every slot. */
export function placeSlots(shape: SlabShape): { segmentBytes: number[]; places: SlotPlace[] } {
  const segmentBytes: number[] = [];
  const places: SlotPlace[] = [];
  for (const { slotBytes, slots } of shape.classes) {
    invariant(slotBytes <= SEGMENT_BYTES_MAX, `slot of ${slotBytes} bytes`);
    const perSegment = Math.max(1, roundDown(SEGMENT_BYTES_WANTED, slotBytes) / slotBytes);
    for (let slot = 0; slot < slots; slot++) {
      const within = slot % perSegment;
      if (within === 0) segmentBytes.push(Math.min(perSegment, slots - slot) * slotBytes);
      places.push({ segment: segmentBytes.length - 1, bytes: within * slotBytes });
    }
  }
  return { segmentBytes, places };
}

export class Slab {
  private readonly shape: SlabShape;
  /** (layers, experts): the slot of an expert, or NONE. */
  private readonly directory: Int32Array;
  /** (slots): layer * experts + expert, or NONE. */
  private readonly owner: Int32Array;
  private readonly state: Uint8Array;
  private readonly pins: Int32Array;
  private readonly classOf: Uint8Array;
  /** layer * experts + expert of whom the last `admit` evicted, or NONE when the slot was empty. */
  evictedKey = NONE;
  /** (classes) */
  private readonly stocks: readonly SlotStock[];
  /** (classes): slots that a chunk leaves alone; (layers): experts that it keeps in them. */
  private readonly kept: readonly number[];
  private readonly keptOfLayer: readonly number[];

  constructor(shape: SlabShape, policy: Policy) {
    const slots = slotCount(shape);
    this.shape = shape;
    this.directory = allocateWords(shape.layers * shape.experts).fill(NONE);
    this.owner = new Int32Array(slots).fill(NONE);
    this.state = new Uint8Array(slots);
    this.pins = new Int32Array(slots);
    this.classOf = new Uint8Array(slots);
    const keys = shape.layers * shape.experts;
    this.stocks = shape.classes.map((each) => createStock(policy, slots, keys, each.slots));
    this.kept = shape.classes.map((each) => each.slots - windowOf(each.slots, shape.experts));
    this.keptOfLayer = keptOfLayers(shape, this.kept);
    shape.classes.forEach((each, index) => {
      // Offered last to first, so that slots fill from the front.
      for (let slot = each.firstSlot + each.slots - 1; slot >= each.firstSlot; slot--) {
        this.classOf[slot] = index;
        this.stocks[index]!.offer(slot, NONE);
      }
    });
  }

  /** The slot that holds or is loading this expert, or NONE. */
  find(layer: number, expert: number): number {
    return this.directory[layer * this.shape.experts + expert]!;
  }

  stateOf(slot: number): number {
    return this.state[slot]!;
  }

  layerOf(slot: number): number {
    return Math.floor(this.owner[slot]! / this.shape.experts);
  }

  expertOf(slot: number): number {
    return this.owner[slot]! % this.shape.experts;
  }

  /** Whether `admit` would find a slot for an expert of this layer now. */
  canAdmit(layer: number): boolean {
    return this.evictable(layer) > 0;
  }

  /** Slots that an expert of this layer could take: empty ones, and those that nobody has pinned. */
  evictable(layer: number): number {
    return this.stockOf(layer).size;
  }

  /**
   * Whether a chunk may take a slot for this layer without pushing out what is to be kept: there is a spare one, or more
   * are resting than are kept.
   */
  hasWindow(layer: number): boolean {
    const stock = this.stockOf(layer);
    return stock.spare > 0 || stock.resting > this.kept[this.shape.classOfLayer[layer]!]!;
  }

  /** The slots that a chunk streams through, for experts of this layer. */
  window(layer: number): number {
    const index = this.shape.classOfLayer[layer]!;
    return this.shape.classes[index]!.slots - this.kept[index]!;
  }

  /** How many experts of this layer a chunk keeps. */
  keptExperts(layer: number): number {
    return this.keptOfLayer[layer]!;
  }

  /** An expert was wanted: the policy counts it, whether or not it is here. */
  note(layer: number, expert: number): void {
    this.stockOf(layer).note(layer * this.shape.experts + expert);
  }

  /**
   * Gives an absent expert a slot, evicting whom the policy names. The slot is LOADING, pinned by its own load. NONE
   * when every slot of the class is pinned.
   */
  admit(layer: number, expert: number): number {
    const key = layer * this.shape.experts + expert;
    invariant(this.directory[key] === NONE, `expert ${expert} of layer ${layer} is in the slab already`);
    const slot = this.stockOf(layer).take();
    if (slot === NONE) return NONE;
    this.evictedKey = this.owner[slot]!;
    this.forget(slot);
    this.owner[slot] = key;
    this.directory[key] = slot;
    this.state[slot] = SLOT_LOADING;
    this.pins[slot] = 1;
    return slot;
  }

  /** The reads of a loading slot have all arrived: the load's pin ends. */
  markReady(slot: number): void {
    invariant(this.state[slot] === SLOT_LOADING, `slot ${slot} is not loading`);
    this.state[slot] = SLOT_READY;
    this.unpin(slot);
  }

  /** The reads of a loading slot have failed: its expert is absent again, and the load's pin ends. */
  markFailed(slot: number): void {
    invariant(this.state[slot] === SLOT_LOADING, `slot ${slot} is not loading`);
    this.forget(slot);
    this.unpin(slot);
  }

  pin(slot: number): void {
    if (this.pins[slot] === 0) this.stocks[this.classOf[slot]!]!.withdraw(slot);
    this.pins[slot] = this.pins[slot]! + 1;
  }

  /** The last unpin makes the slot evictable; `spent` says that its expert is not wanted soon. */
  unpin(slot: number, spent = false): void {
    const left = this.pins[slot]! - 1;
    invariant(left > 0 || (left === 0 && this.state[slot] !== SLOT_LOADING), `unpin of slot ${slot}`);
    this.pins[slot] = left;
    if (left > 0) return;
    const stock = this.stocks[this.classOf[slot]!]!;
    const key = this.owner[slot]!;
    if (spent && key !== NONE) stock.offerSpent(slot);
    else stock.offer(slot, key);
  }

  isPinned(slot: number): boolean {
    return this.pins[slot]! > 0;
  }

  private forget(slot: number): void {
    const key = this.owner[slot]!;
    if (key !== NONE) this.directory[key] = NONE;
    this.owner[slot] = NONE;
    this.state[slot] = SLOT_EMPTY;
  }

  private stockOf(layer: number): SlotStock {
    return this.stocks[this.shape.classOfLayer[layer]!]!;
  }
}

function windowOf(slots: number, experts: number): number {
  return Math.max(1, Math.min(slots >> 1, experts));
}

/** Every layer of a class gets the same share, the first ones what is left over; all of it where all experts fit. */
function keptOfLayers({ classes, classOfLayer, experts }: SlabShape, kept: readonly number[]): number[] {
  return classOfLayer.map((index, layer) => {
    const layers = classOfLayer.filter((each) => each === index).length;
    if (classes[index]!.slots >= layers * experts) return experts;
    const before = classOfLayer.slice(0, layer).filter((each) => each === index).length;
    return Math.floor(kept[index]! / layers) + (before < kept[index]! % layers ? 1 : 0);
  });
}
