import { describe, expect, it } from 'vitest';
import { createStock, NONE, type Policy } from '../../dist/pipeline/eviction.js';

/** A cache of `slots` keys that looks up each key in turn; returns the hits. */
function hits(name: Policy, slots: number, keys: number, lookups: readonly number[]): number {
  const policy = createStock(name, slots, keys, slots);
  const keyOf = new Array<number>(slots).fill(NONE);
  const slotOf = new Map<number, number>();
  for (let slot = 0; slot < slots; slot++) policy.offer(slot, NONE);
  let found = 0;
  for (const key of lookups) {
    policy.note(key);
    let slot = slotOf.get(key);
    if (slot === undefined) {
      slot = policy.take();
      slotOf.delete(keyOf[slot]!);
      keyOf[slot] = key;
      slotOf.set(key, slot);
    } else {
      found++;
      policy.withdraw(slot);
    }
    policy.offer(slot, key);
    expect(policy.size).toBe(slots);
  }
  return found;
}

/** A few hot keys among many that come once: what a cache should learn. */
function hotAndCold(count: number): number[] {
  const lookups: number[] = [];
  for (let index = 0; index < count; index++)
    lookups.push(index % 2 === 0 ? (index / 2) % 6 : 10 + (index % 500));
  return lookups;
}

describe('eviction policies', () => {
  it('lru gives away the least recently used', () => {
    expect(hits('lru', 3, 10, [1, 2, 3, 1, 4, 1, 2])).toBe(2);
  });

  it('lfru and s3fifo keep hot experts through a stream of cold ones, lru does not', () => {
    const lookups = hotAndCold(4000);
    const most = 2000 - 6;
    expect(hits('lru', 8, 600, lookups)).toBeLessThan(0.1 * most);
    expect(hits('lfru', 8, 600, lookups)).toBeGreaterThan(0.9 * most);
    expect(hits('s3fifo', 8, 600, lookups)).toBeGreaterThan(0.6 * most);
  });

  it('lfru lets go of experts that were hot once', () => {
    const before = Array.from({ length: 2000 }, (_, index) => index % 6);
    const after = Array.from({ length: 2000 }, (_, index) => 20 + (index % 6));
    expect(hits('lfru', 8, 100, [...before, ...after])).toBeGreaterThan(0.9 * 4000);
  });

  it('withdrawn slots are never given away', () => {
    for (const name of ['lru', 'lfru', 's3fifo'] as const) {
      const policy = createStock(name, 3, 3, 3);
      for (let slot = 0; slot < 3; slot++) policy.offer(slot, slot);
      policy.withdraw(1);
      expect([policy.take(), policy.take()].sort()).toEqual([0, 2]);
      expect(policy.take()).toBe(NONE);
      expect(policy.size).toBe(0);
    }
  });
});
