/** Orders of rounds: what changes steadily weighs on everyone alike, and everyone follows everyone. */
import { describe, expect, it } from 'vitest';
import { balancedOrder } from '#dist/eval/schedule.js';
import { expandList } from '#dist/eval/value-lists.js';

const COUNTS = [1, 2, 3, 4, 5, 6, 7, 8, 13, 32];

describe('a balanced order', () => {
  it.each(COUNTS)('of %i has everyone once a round', (count) => {
    for (const round of balancedOrder(count, 2 * count)) {
      expect([...round].sort((a, b) => a - b)).toEqual(Array.from({ length: count }, (_, index) => index));
    }
  });

  it.each(COUNTS)('of %i lets a steady drift weigh on all alike after every pair of rounds', (count) => {
    for (let rounds = 2; rounds <= 2 * count; rounds += 2) {
      const times = Array.from({ length: count }, () => 0);
      balancedOrder(count, rounds)
        .flat()
        .forEach((each, time) => {
          times[each] = times[each]! + time;
        });
      expect(new Set(times).size).toBe(1);
    }
  });

  it.each(COUNTS.filter((count) => count > 1))('of %i is complete after twice as many rounds', (count) => {
    const places = new Map<string, number>();
    const followers = new Map<string, number>();
    const add = (map: Map<string, number>, key: string) => map.set(key, (map.get(key) ?? 0) + 1);
    for (const round of balancedOrder(count, 2 * count)) {
      round.forEach((each, place) => {
        add(places, `${each} at ${place}`);
        if (place > 0) add(followers, `${each} behind ${round[place - 1]}`);
      });
    }
    expect(places.size).toBe(count * count);
    expect(new Set(places.values())).toEqual(new Set([2]));
    expect(followers.size).toBe(count * (count - 1));
    expect(new Set(followers.values())).toEqual(new Set([2]));
  });
});

describe('a list of values', () => {
  it.each([
    ['1,2,4', ['1', '2', '4']],
    ['1-4', ['1', '2', '3', '4']],
    ['2-9+3', ['2', '5', '8']],
    ['1-20*4', ['1', '4', '16']],
    ['1,1-3,2', ['1', '2', '3']],
    ['lru, lfru', ['lru', 'lfru']],
    ['4G,8G', ['4G', '8G']],
  ])('%s', (text, values) => {
    expect(expandList(text)).toEqual(values);
  });

  it.each(['', '1,,2', '4-1', '1-4*1', '0-8*2', '1-4+0', '1-100000'])('refuses "%s"', (text) => {
    expect(() => expandList(text)).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });
});
