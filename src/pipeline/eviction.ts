/**
 * Which expert leaves the slab when another needs its slot: policies behind one interface, one instance per size class.
 *
 * A policy holds the slots that could be given away: it gets a slot when its last pin ends and loses it when it is
 * pinned, so it never has to skip one that is in use. All work is on intrusive lists, constant time per step, whatever
 * the size of the slab.
 *
 * Before any policy is asked, spare slots go: empty ones first, then those whose experts are known not to be wanted soon
 * (src/workers/chunk-cache.ts), the first of them first.
 *
 * * `lru`: the least recently used goes first.
 * * `lfru`: frequency first, recency among equals. Uses are counted per expert, also while it is absent, up to 15, and
 *   halved as time passes; LFU with dynamic ageing kept 29 % of hits where LRU kept 5 % at small cache sizes (WASTE).
 * * `s3fifo`: newcomers wait in a small queue and reach the main one only when they are used again or come back soon
 *   (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).
 */
import { MoestreamError } from '../errors.ts';

/** No slot; no neighbour. */
export const NONE = -1;

export const POLICIES = ['lru', 'lfru', 's3fifo'] as const;
export type Policy = (typeof POLICIES)[number];
/** By replay of a trained model's routes and by its answers while streaming: docs/prediction.md. */
export const POLICY_DEFAULT: Policy = 'lfru';

export interface EvictionPolicy {
  /** The slot can be given away from now on. `key` is the expert it holds. */
  offer(slot: number, key: number): void;
  /** The slot is in use: not to be given away. */
  withdraw(slot: number): void;
  /** Takes the slot that should be given away next, or NONE. */
  take(): number;
  /** An expert was wanted, whether or not it was there. */
  note(key: number): void;
  /** Slots that could be given away. */
  readonly size: number;
}

/** Doubly linked lists of slots in two arrays: a slot is in at most one list. */
class SlotLists {
  private readonly before: Int32Array;
  private readonly after: Int32Array;
  private readonly head: Int32Array;
  private readonly tail: Int32Array;
  private readonly counts: Int32Array;
  /** (slots): the list that a slot is in, or NONE. */
  readonly listOf: Int32Array;

  constructor(slots: number, lists: number) {
    this.before = new Int32Array(slots).fill(NONE);
    this.after = new Int32Array(slots).fill(NONE);
    this.listOf = new Int32Array(slots).fill(NONE);
    this.head = new Int32Array(lists).fill(NONE);
    this.tail = new Int32Array(lists).fill(NONE);
    this.counts = new Int32Array(lists);
  }

  count(list: number): number {
    return this.counts[list]!;
  }

  first(list: number): number {
    return this.head[list]!;
  }

  append(list: number, slot: number): void {
    const last = this.tail[list]!;
    this.before[slot] = last;
    this.after[slot] = NONE;
    if (last === NONE) this.head[list] = slot;
    else this.after[last] = slot;
    this.tail[list] = slot;
    this.listOf[slot] = list;
    this.counts[list] = this.counts[list]! + 1;
  }

  prepend(list: number, slot: number): void {
    const first = this.head[list]!;
    this.before[slot] = NONE;
    this.after[slot] = first;
    if (first === NONE) this.tail[list] = slot;
    else this.before[first] = slot;
    this.head[list] = slot;
    this.listOf[slot] = list;
    this.counts[list] = this.counts[list]! + 1;
  }

  remove(slot: number): void {
    const list = this.listOf[slot]!;
    const before = this.before[slot]!;
    const after = this.after[slot]!;
    if (before === NONE) this.head[list] = after;
    else this.after[before] = after;
    if (after === NONE) this.tail[list] = before;
    else this.before[after] = before;
    this.listOf[slot] = NONE;
    this.counts[list] = this.counts[list]! - 1;
  }

  /** Puts all of `from` behind `to`, in order. */
  moveAll(from: number, to: number): void {
    for (let slot = this.head[from]!; slot !== NONE; slot = this.head[from]!) {
      this.remove(slot);
      this.append(to, slot);
    }
  }
}

class LeastRecentlyUsed implements EvictionPolicy {
  private readonly lists: SlotLists;

  constructor(slots: number) {
    this.lists = new SlotLists(slots, 1);
  }

  get size(): number {
    return this.lists.count(0);
  }

  offer(slot: number): void {
    this.lists.append(0, slot);
  }

  withdraw(slot: number): void {
    this.lists.remove(slot);
  }

  take(): number {
    const slot = this.lists.first(0);
    if (slot !== NONE) this.lists.remove(slot);
    return slot;
  }

  note(): void {}
}

const FREQUENCY_MAX = 15;
/** Counts are halved when every slot has been wanted this often on average. */
const AGEING_ROUNDS = 8;

class FrequencyThenRecency implements EvictionPolicy {
  /** One list per frequency, the least recent first. */
  private readonly lists: SlotLists;
  /** (keys) */
  private readonly frequency: Uint8Array;
  private readonly ageAfter: number;
  private notes = 0;
  size = 0;

  constructor(slots: number, keys: number, slotsOfClass: number) {
    this.lists = new SlotLists(slots, FREQUENCY_MAX + 1);
    this.frequency = new Uint8Array(keys);
    this.ageAfter = AGEING_ROUNDS * slotsOfClass;
  }

  offer(slot: number, key: number): void {
    this.size++;
    this.lists.append(this.frequency[key]!, slot);
  }

  withdraw(slot: number): void {
    this.size--;
    this.lists.remove(slot);
  }

  take(): number {
    for (let frequency = 0; frequency <= FREQUENCY_MAX; frequency++) {
      const slot = this.lists.first(frequency);
      if (slot === NONE) continue;
      this.withdraw(slot);
      return slot;
    }
    return NONE;
  }

  note(key: number): void {
    this.frequency[key] = Math.min(FREQUENCY_MAX, this.frequency[key]! + 1);
    if (++this.notes < this.ageAfter) return;
    this.notes = 0;
    for (let each = 0; each < this.frequency.length; each++)
      this.frequency[each] = this.frequency[each]! >> 1;
    for (let frequency = 1; frequency <= FREQUENCY_MAX; frequency++)
      this.lists.moveAll(frequency, frequency >> 1);
  }
}

const SMALL = 0;
const MAIN = 1;
/** The share of slots for newcomers. */
const SMALL_SHARE = 0.1;
const USES_MAX = 3;

class SmallThenMain implements EvictionPolicy {
  private readonly lists: SlotLists;
  /** (slots): the expert in the slot; and the queue it belongs to, also while it is in use. */
  private readonly keyOf: Int32Array;
  private readonly queueOf: Uint8Array;
  /** (keys): uses since it came, at most 3. */
  private readonly uses: Uint8Array;
  /** (keys): when it left the small queue without a second use, counted in departures; 0 never. */
  private readonly departed: Float64Array;
  private departures = 0;
  private readonly smallSlots: number;
  private readonly mainSlots: number;

  constructor(slots: number, keys: number, slotsOfClass: number) {
    this.lists = new SlotLists(slots, 2);
    this.keyOf = new Int32Array(slots).fill(NONE);
    this.queueOf = new Uint8Array(slots);
    this.uses = new Uint8Array(keys);
    this.departed = new Float64Array(keys);
    this.smallSlots = Math.max(1, Math.round(slotsOfClass * SMALL_SHARE));
    this.mainSlots = slotsOfClass - this.smallSlots;
  }

  get size(): number {
    return this.lists.count(SMALL) + this.lists.count(MAIN);
  }

  /** A slot keeps its queue as long as it keeps its expert. An expert that left lately comes back into the main queue. */
  offer(slot: number, key: number): void {
    if (this.keyOf[slot] !== key) {
      this.keyOf[slot] = key;
      const left = this.departed[key]!;
      this.queueOf[slot] = left > 0 && this.departures - left < this.mainSlots ? MAIN : SMALL;
      this.departed[key] = 0;
      this.uses[key] = 0;
    }
    this.lists.append(this.queueOf[slot]!, slot);
  }

  withdraw(slot: number): void {
    this.lists.remove(slot);
  }

  take(): number {
    // Every pass gives a slot away, moves one from small to main, or takes a use off one in main: all bounded.
    for (;;) {
      const fromSmall =
        this.lists.count(SMALL) > 0 &&
        (this.lists.count(SMALL) >= this.smallSlots || this.lists.count(MAIN) === 0);
      const slot = fromSmall ? this.lists.first(SMALL) : this.lists.first(MAIN);
      if (slot === NONE) return NONE;
      const key = this.keyOf[slot]!;
      const used = this.uses[key]!;
      this.lists.remove(slot);
      if (fromSmall && used > 1) {
        this.uses[key] = 0;
        this.queueOf[slot] = MAIN;
        this.lists.append(MAIN, slot);
      } else if (!fromSmall && used > 0) {
        this.uses[key] = used - 1;
        this.lists.append(MAIN, slot);
      } else {
        if (fromSmall) this.departed[key] = ++this.departures;
        this.keyOf[slot] = NONE;
        return slot;
      }
    }
  }

  note(key: number): void {
    this.uses[key] = Math.min(USES_MAX, this.uses[key]! + 1);
  }
}

const EMPTY = 0;
const SPENT = 1;

/** Spare slots, and a policy for the rest. */
export class SlotStock {
  private readonly policy: EvictionPolicy;
  private readonly spares: SlotLists;

  constructor(policy: EvictionPolicy, slots: number) {
    this.policy = policy;
    this.spares = new SlotLists(slots, 2);
  }

  /** Slots that could be given away. */
  get size(): number {
    return this.spare + this.resting;
  }

  /** Of these, the ones that nobody would miss. */
  get spare(): number {
    return this.spares.count(EMPTY) + this.spares.count(SPENT);
  }

  /** And those that the policy chooses from. */
  get resting(): number {
    return this.policy.size;
  }

  /** The slot can be given away from now on. `key` is the expert it holds, or NONE when it is empty. */
  offer(slot: number, key: number): void {
    if (key === NONE) this.spares.prepend(EMPTY, slot);
    else this.policy.offer(slot, key);
  }

  /** The same, before all that the policy holds: its expert is not wanted soon. */
  offerSpent(slot: number): void {
    this.spares.append(SPENT, slot);
  }

  /** The slot is in use: not to be given away. */
  withdraw(slot: number): void {
    if (this.spares.listOf[slot] === NONE) this.policy.withdraw(slot);
    else this.spares.remove(slot);
  }

  /** Takes the slot that should be given away next, or NONE. */
  take(): number {
    const list = this.spares.count(EMPTY) > 0 ? EMPTY : SPENT;
    const slot = this.spares.first(list);
    if (slot === NONE) return this.policy.take();
    this.spares.remove(slot);
    return slot;
  }

  /** An expert was wanted, whether or not it was there. */
  note(key: number): void {
    this.policy.note(key);
  }
}

/** The stock of one class of slots. `slots` and `keys` count all slots and experts of the slab. */
export function createStock(name: Policy, slots: number, keys: number, slotsOfClass: number): SlotStock {
  return new SlotStock(createPolicy(name, slots, keys, slotsOfClass), slots);
}

function createPolicy(name: Policy, slots: number, keys: number, slotsOfClass: number): EvictionPolicy {
  switch (name) {
    case 'lru':
      return new LeastRecentlyUsed(slots);
    case 'lfru':
      return new FrequencyThenRecency(slots, keys, slotsOfClass);
    case 's3fifo':
      return new SmallThenMain(slots, keys, slotsOfClass);
    default:
      throw new MoestreamError(
        'USAGE',
        `no eviction policy is called ${String(name)}, choose ${POLICIES.join(', ')}`,
      );
  }
}
