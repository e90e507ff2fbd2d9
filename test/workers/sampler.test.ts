import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Random } from '../../dist/workers/random.js';
import { DEFAULT_SAMPLING, Sampler, type SamplingParams } from '../../dist/workers/sampler.js';

const params = (changes: Partial<SamplingParams>): SamplingParams => ({
  ...DEFAULT_SAMPLING,
  seed: 1,
  ...changes,
});

/** The same chain, sorted whole and written plainly: id -> probability. */
function reference(logits: readonly number[], p: SamplingParams): Map<number, number> {
  let kept = logits.map((logit, id) => ({ id, logit: Math.fround(logit) }));
  kept.sort((a, b) => b.logit - a.logit || a.id - b.id);
  if (p.topK > 0) kept = kept.slice(0, p.topK);
  const softmax = (temperature: number): number[] => {
    const weights = kept.map((each) => Math.exp((each.logit - kept[0]!.logit) / temperature));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return weights.map((weight) => weight / total);
  };
  const probabilities = softmax(1);
  let sum = 0;
  let count = 0;
  while (count < kept.length && (count === 0 || p.topP === 1 || sum < p.topP)) sum += probabilities[count++]!;
  kept = kept.filter(
    (_, index) => index < count && (index === 0 || probabilities[index]! >= p.minP * probabilities[0]!),
  );
  const final = softmax(p.temperature);
  return new Map(kept.map((each, index) => [each.id, final[index]!]));
}

describe('Sampler', () => {
  it('draws only what the chain keeps, as often as it should', () => {
    // Distinct values, so that a rounding at the edge of top-p cannot matter.
    const logits = [2.1, -1.3, 0.4, 3.2, 1.9, -0.7, 2.8, 0.1, 1.2, -2.4];
    for (const changes of [
      { topK: 0, topP: 1, minP: 0 },
      { topK: 4, topP: 1, minP: 0 },
      { topK: 0, topP: 0.8, minP: 0 },
      { topK: 0, topP: 1, minP: 0.2 },
      { topK: 6, topP: 0.9, minP: 0.1, temperature: 1.7 },
      { topK: 3, topP: 0.5, minP: 0.01, temperature: 0.5 },
    ]) {
      const p = params(changes);
      const expected = reference(logits, p);
      const sampler = new Sampler(p, logits.length);
      const draws = 20_000;
      const seen = new Map<number, number>();
      for (let draw = 0; draw < draws; draw++) {
        const id = sampler.sample(Float32Array.from(logits));
        seen.set(id, (seen.get(id) ?? 0) + 1);
      }
      expect([...seen.keys()].sort()).toEqual([...expected.keys()].sort());
      for (const [id, probability] of expected) {
        const sigma = Math.sqrt((probability * (1 - probability)) / draws);
        expect(Math.abs(seen.get(id)! / draws - probability)).toBeLessThan(5 * sigma + 1e-9);
      }
    }
  });

  it('takes the largest logit at temperature 0, the lowest id among equals', () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ noNaN: true, min: -50, max: 50 }), { minLength: 1, maxLength: 40 }),
        (logits) => {
          const sampler = new Sampler(params({ temperature: 0 }), logits.length);
          expect(sampler.sample(Float32Array.from(logits))).toBe(logits.indexOf(Math.max(...logits)));
        },
      ),
    );
  });

  it('never leaves what the reference keeps, for any parameters', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.integer({ min: -400, max: 400 }), { minLength: 1, maxLength: 30 }),
        fc.integer({ min: 0, max: 40 }),
        fc.constantFrom(1, 0.97, 0.7, 0.31, 0),
        fc.constantFrom(0, 0.013, 0.27, 1),
        fc.integer({ min: 0, max: 2 ** 32 - 1 }),
        (tenths, topK, topP, minP, seed) => {
          const logits = tenths.map((each) => each / 37);
          const p = params({ topK, topP, minP, seed, temperature: 3 });
          const sampler = new Sampler(p, logits.length);
          const kept = reference(logits, p);
          for (let draw = 0; draw < 20; draw++)
            expect(kept.has(sampler.sample(Float32Array.from(logits)))).toBe(true);
        },
      ),
    );
  });

  it.each([
    ['rising', (id: number) => id / 500],
    ['falling', (id: number) => -id / 500],
    ['in waves, many of them equal', (id: number) => Math.round(20 * Math.sin(id))],
    ['all equal', () => 1.5],
  ])('keeps the same of thousands of logits that are %s', (_, logitOf) => {
    const logits = Array.from({ length: 3000 }, (_each, id) => logitOf(id));
    for (const changes of [{ topK: 1 }, { topK: 7 }, { topK: 2900 }, { topK: 0 }, { topK: 0, minP: 0 }]) {
      const p = params({ topP: 0.6, minP: 0.01, temperature: 50, ...changes });
      const kept = reference(logits, p);
      const sampler = new Sampler(p, logits.length);
      const seen = new Set<number>();
      for (let draw = 0; draw < 200; draw++) seen.add(sampler.sample(Float32Array.from(logits)));
      expect([...seen].filter((id) => !kept.has(id))).toEqual([]);
      expect(seen.size).toBeGreaterThan(Math.min(kept.size - 1, 20));
    }
  });

  it('penalises a repeated token once, and forgets it after repeatLastN', () => {
    const p = params({ temperature: 0, repeatPenalty: 2, repeatLastN: 2 });
    const sampler = new Sampler(p, 3);
    const logits = Float32Array.of(4, 3, -1);
    expect(sampler.sample(logits)).toBe(0);
    sampler.accept(0);
    sampler.accept(0);
    expect(sampler.sample(logits)).toBe(1);
    sampler.accept(2);
    sampler.accept(2);
    expect(sampler.sample(logits)).toBe(0);
    expect(new Sampler(params({ temperature: 0, repeatPenalty: 1.3 }), 3).sample(logits)).toBe(0);
  });

  it('ends with an error when the logits are not numbers', () => {
    const sampler = new Sampler(params({}), 3);
    expect(() => sampler.sample(Float32Array.of(1, Number.NaN, 2))).toThrow(/not a number/);
    expect(() => sampler.sample(Float32Array.of(1, Number.POSITIVE_INFINITY, 2))).toThrow(/not a number/);
  });

  it.each([
    ['temperature', -1],
    ['topP', 1.5],
    ['topK', 2.5],
    ['repeatPenalty', 0],
    ['seed', -1],
    ['minP', Number.NaN],
  ])('refuses %s = %d', (name, value) => {
    expect(() => new Sampler(params({ [name]: value }), 3)).toThrow(new RegExp(`${name} is`));
  });
});

describe('Random', () => {
  it('is xoshiro128**: the published first outputs from state 1, 2, 3, 4', () => {
    const random = new Random(0);
    (random as unknown as { state: Uint32Array }).state.set([1, 2, 3, 4]);
    const outputs = Array.from({ length: 4 }, () => random.next() * 2 ** 32);
    expect(outputs).toEqual([11520, 0, 5927040, 70819200]);
  });

  it('gives the same numbers for a seed, for ever', () => {
    const random = new Random(42);
    // Written down from this implementation: a change here changes every seeded text.
    const first = [0.15377165307290852, 0.8504893006756902, 0.018084544222801924];
    expect([random.next(), random.next(), random.next()]).toEqual(first);
  });

  it('is uniform', () => {
    const random = new Random(7);
    const bins = new Array<number>(16).fill(0);
    for (let draw = 0; draw < 160_000; draw++) bins[Math.floor(random.next() * 16)]!++;
    for (const bin of bins) expect(Math.abs(bin - 10_000)).toBeLessThan(500);
  });
});
