import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NONE, POLICIES } from '../../dist/pipeline/eviction.js';
import { placeSlots, SLOT_LOADING, SLOT_READY, Slab, type SlabShape } from '../../dist/pipeline/slab.js';

const LAYERS = 3;
const EXPERTS = 5;

const shapeOf = (small: number, large: number): SlabShape => ({
  layers: LAYERS,
  experts: EXPERTS,
  classes: [
    { slotBytes: 16384, slots: small, firstSlot: 0 },
    { slotBytes: 32768, slots: large, firstSlot: small },
  ],
  classOfLayer: [0, 1, 0],
});

/** The same rules, written the slow and obvious way: the order of eviction is an array. */
class Model {
  readonly owner = new Map<number, string>();
  readonly loading = new Set<number>();
  readonly pins = new Map<number, number>();
  readonly order: [number[], number[]];
  /** Of these, the slots whose experts are not wanted soon. */
  readonly spent = new Set<number>();

  constructor(shape: SlabShape) {
    const slotsOf = (index: number): number[] =>
      Array.from(
        { length: shape.classes[index]!.slots },
        (_, slot) => slot + shape.classes[index]!.firstSlot,
      );
    this.order = [slotsOf(0), slotsOf(1)];
  }

  find(key: string): number {
    for (const [slot, owner] of this.owner) if (owner === key) return slot;
    return NONE;
  }
}

describe('Slab', () => {
  it.each(POLICIES)('%s agrees with a simple model under any sequence of operations', (policy) => {
    const operation = fc.record({
      kind: fc.constantFrom('admit', 'ready', 'fail', 'pin', 'unpin'),
      layer: fc.integer({ min: 0, max: LAYERS - 1 }),
      expert: fc.integer({ min: 0, max: EXPERTS - 1 }),
      spent: fc.boolean(),
    });
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 6 }),
        fc.integer({ min: 1, max: 4 }),
        fc.array(operation, { maxLength: 200 }),
        (small, large, operations) => {
          const shape = shapeOf(small, large);
          const slab = new Slab(shape, policy);
          const model = new Model(shape);
          const pinsOf = (slot: number): number => model.pins.get(slot) ?? 0;
          const classOf = (slot: number): 0 | 1 => (slot < small ? 0 : 1);
          const drop = (slot: number, isSpent = false): void => {
            model.pins.set(slot, pinsOf(slot) - 1);
            if (pinsOf(slot) > 0) return;
            if (isSpent) model.spent.add(slot);
            // Empty slots go first, whatever the policy.
            if (model.owner.has(slot)) model.order[classOf(slot)].push(slot);
            else model.order[classOf(slot)].unshift(slot);
          };
          for (const { kind, layer, expert, spent } of operations) {
            const key = `${layer}/${expert}`;
            const slot = slab.find(layer, expert);
            expect(slot).toBe(model.find(key));
            if (kind === 'admit' && slot === NONE) {
              const order = model.order[shape.classOfLayer[layer] as 0 | 1];
              expect(slab.canAdmit(layer)).toBe(order.length > 0);
              const free = order.find((each) => !model.owner.has(each));
              const firstSpent = order.find((each) => model.spent.has(each));
              const given = slab.admit(layer, expert);
              // Every policy gives an empty slot first, then one that is spent, then one that nobody uses; lru the oldest.
              if (order.length === 0) expect(given).toBe(NONE);
              else if (free !== undefined) expect(given).toBe(free);
              else if (firstSpent !== undefined) expect(given).toBe(firstSpent);
              else if (policy === 'lru') expect(given).toBe(order[0]);
              else expect(order).toContain(given);
              model.spent.delete(given);
              if (given === NONE) continue;
              order.splice(order.indexOf(given), 1);
              model.owner.set(given, key);
              model.loading.add(given);
              model.pins.set(given, 1);
              expect([slab.layerOf(given), slab.expertOf(given)]).toEqual([layer, expert]);
            } else if (kind === 'ready' && model.loading.has(slot)) {
              slab.markReady(slot);
              model.loading.delete(slot);
              drop(slot);
            } else if (kind === 'fail' && model.loading.has(slot)) {
              slab.markFailed(slot);
              model.loading.delete(slot);
              model.owner.delete(slot);
              drop(slot);
            } else if (kind === 'pin' && slot !== NONE) {
              slab.pin(slot);
              model.spent.delete(slot);
              if (pinsOf(slot) === 0)
                model.order[classOf(slot)].splice(model.order[classOf(slot)].indexOf(slot), 1);
              model.pins.set(slot, pinsOf(slot) + 1);
            } else if (
              kind === 'unpin' &&
              slot !== NONE &&
              pinsOf(slot) > (model.loading.has(slot) ? 1 : 0)
            ) {
              slab.unpin(slot, spent);
              drop(slot, spent);
            }
            for (const [each] of model.owner) {
              expect(slab.stateOf(each)).toBe(model.loading.has(each) ? SLOT_LOADING : SLOT_READY);
              expect(slab.isPinned(each)).toBe(pinsOf(each) > 0);
            }
            for (const which of [0, 1] as const) {
              const order = model.order[which];
              const spare = order.filter((each) => !model.owner.has(each) || model.spent.has(each)).length;
              const kept = [small, large][which]! - slab.window(which);
              expect(slab.evictable(which)).toBe(order.length);
              expect(slab.hasWindow(which)).toBe(spare > 0 || order.length - spare > kept);
            }
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  it('shares out what a chunk keeps, and keeps everything where all fits', () => {
    const keptOf = (small: number, large: number): number[] => {
      const slab = new Slab(shapeOf(small, large), 'lru');
      return [0, 1, 2].map((layer) => slab.keptExperts(layer));
    };
    expect(keptOf(1, 1)).toEqual([0, 0, 0]);
    // Windows of 3 and 2 slots.
    expect(keptOf(6, 4)).toEqual([2, 2, 1]);
    // A window is no larger than a layer of 5 experts; of the other class all experts have a slot.
    expect(keptOf(9, 5)).toEqual([3, 5, 2]);
    expect(keptOf(10, 5)).toEqual([5, 5, 5]);
  });

  it('stops at broken rules instead of going on with wrong bytes', () => {
    const slab = new Slab(shapeOf(1, 1), 'lru');
    const slot = slab.admit(0, 0);
    expect(() => slab.admit(0, 0)).toThrow(/in the slab already/);
    expect(() => slab.unpin(slot)).toThrow(/unpin/);
    expect(slab.admit(0, 1)).toBe(NONE);
    slab.markReady(slot);
    expect(() => slab.markReady(slot)).toThrow(/not loading/);
    expect(() => slab.unpin(slot)).toThrow(/unpin/);
  });

  it('gives every slot a place of its own in segments of at most 1 GiB', () => {
    const shape: SlabShape = {
      layers: 1,
      experts: 1,
      classes: [
        { slotBytes: 5_455_872, slots: 400, firstSlot: 0 },
        { slotBytes: 2 ** 31, slots: 2, firstSlot: 400 },
      ],
      classOfLayer: [0],
    };
    const { segmentBytes, places } = placeSlots(shape);
    expect(places).toHaveLength(402);
    const used = new Map<number, number>();
    places.forEach((place, slot) => {
      const bytes = slot < 400 ? 5_455_872 : 2 ** 31;
      expect(place.bytes).toBe(used.get(place.segment) ?? 0);
      used.set(place.segment, place.bytes + bytes);
    });
    segmentBytes.forEach((bytes, segment) => {
      expect(used.get(segment)).toBe(bytes);
      expect(bytes).toBeLessThanOrEqual(2 ** 31);
    });
  });
});
