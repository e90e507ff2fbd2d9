/**
 * Several sequences in one backend: together as alone, copied, saved and restored, all bit for bit in exact; and saved
 * states that are damaged, of another model or too long, which end in a typed error and change nothing.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import { restoreSequence } from '../../dist/native.js';
import { ARCHITECTURES, bytesOf, Driver, type StepRow, someIds, tinyModel } from './tiny-model.js';

const SEQUENCES = 4;
const VOCABULARY = 61;

const drivers: Driver[] = [];
afterAll(() => {
  for (const driver of drivers) driver.backend.close();
});

function drive(model: ConstructorParameters<typeof Driver>[0], changes = {}): Driver {
  const driver = new Driver(model, { maxSequences: SEQUENCES, ...changes });
  drivers.push(driver);
  return driver;
}

function bits(values: Float32Array): Uint32Array {
  return new Uint32Array(values.slice().buffer);
}

/** Several conversations on one backend, each with what it has said so far and the logits it was given. */
class Talk {
  readonly driver: Driver;
  readonly said: number[][] = Array.from({ length: SEQUENCES }, () => []);

  constructor(driver: Driver) {
    this.driver = driver;
    for (let sequence = 0; sequence < SEQUENCES; sequence++) driver.backend.resetSequence(sequence);
  }

  /** One step with these ids for these sequences; the logits of each of them. */
  step(parts: readonly (readonly [sequence: number, ids: readonly number[]])[]): Float32Array[] {
    const rows = parts.flatMap(([sequence, ids]) =>
      ids.map((token): StepRow => ({ token, position: this.said[sequence]!.push(token) - 1, sequence })),
    );
    const logits = this.driver.step(rows);
    let first = 0;
    return parts.map(([, ids]) => {
      const from = first * VOCABULARY;
      first += ids.length;
      return logits.slice(from, first * VOCABULARY);
    });
  }

  say(sequence: number, ids: readonly number[]): Float32Array {
    return this.step([[sequence, ids]])[0]!;
  }

  save(sequence: number): Uint8Array<ArrayBuffer> {
    const { backend } = this.driver;
    const state = new Uint8Array(backend.sequenceBytes(this.said[sequence]!.length));
    expect(backend.saveSequence(sequence, state)).toBe(state.length);
    return state;
  }

  restore(sequence: number, state: Uint8Array, said: readonly number[]): void {
    restoreSequence(this.driver.backend, sequence, state);
    this.said[sequence] = [...said];
  }
}

/** The code of the MoestreamError that `work` ends with, or undefined when it ends without one. */
function refusal(work: () => void): string | undefined {
  try {
    work();
  } catch (error) {
    if (MoestreamError.is(error)) return error.code;
    throw error;
  }
  return undefined;
}

describe.each(ARCHITECTURES)('%s', (architecture) => {
  const model = tinyModel(architecture);
  const driver = drive(model);
  const alone = drive(model, { maxSequences: 1 });
  const ids = [11, 12, 13, 14].map((seed) => someIds(30, VOCABULARY, seed));
  const expected = ids.map((each) => alone.sequence(each, [16]));
  const rowsOf = (sequence: number, from: number, to: number): Uint32Array =>
    bits(expected[sequence]!.subarray(from * VOCABULARY, to * VOCABULARY));

  test('prompts and decodes in one step give what each alone gives', () => {
    const talk = new Talk(driver);
    // How many ids of each sequence a step takes, and in which order they stand in it.
    const steps: [number, number][][] = [
      [
        [0, 5],
        [1, 4],
        [2, 6],
        [3, 1],
      ],
      [
        [3, 1],
        [2, 1],
        [1, 1],
        [0, 1],
      ],
      [
        [1, 9],
        [0, 1],
        [3, 2],
      ],
      [[2, 13]],
      [
        [0, 1],
        [2, 1],
      ],
    ];
    for (const parts of steps) {
      const before = parts.map(([sequence]) => talk.said[sequence]!.length);
      const found = talk.step(
        parts.map(([sequence, count], i) => [sequence, ids[sequence]!.slice(before[i]!, before[i]! + count)]),
      );
      parts.forEach(([sequence, count], i) => {
        expect(bits(found[i]!)).toEqual(rowsOf(sequence, before[i]!, before[i]! + count));
      });
    }
  });

  test('any division of four sequences into steps gives what each alone gives', () => {
    const part = fc.tuple(fc.nat(SEQUENCES - 1), fc.integer({ min: 1, max: 4 }));
    const step = fc.uniqueArray(part, { minLength: 1, selector: ([sequence]) => sequence });
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 6 }), (steps) => {
        const talk = new Talk(driver);
        for (const parts of steps) {
          const before = parts.map(([sequence]) => talk.said[sequence]!.length);
          const found = talk.step(
            parts.map(([sequence, count], i) => [
              sequence,
              ids[sequence]!.slice(before[i]!, before[i]! + count),
            ]),
          );
          parts.forEach(([sequence, count], i) => {
            expect(bits(found[i]!)).toEqual(rowsOf(sequence, before[i]!, before[i]! + count));
          });
        }
      }),
      { numRuns: 20 },
    );
  });

  test('a copy goes on as the original would, and the original goes on its own way', () => {
    const talk = new Talk(driver);
    talk.say(0, ids[0]!.slice(0, 14));
    talk.say(2, ids[2]!.slice(0, 3));
    driver.backend.copySequence(0, 2);
    talk.said[2] = [...talk.said[0]!];
    const other = [...ids[0]!.slice(0, 14), ...ids[3]!.slice(0, 6)];
    const otherwise = alone.sequence(other, [16]);
    // In one step: the copy as the original would have gone on, the original in another direction.
    const [diverged, followed] = talk.step([
      [0, ids[3]!.slice(0, 6)],
      [2, ids[0]!.slice(14, 20)],
    ]);
    expect(bits(followed!)).toEqual(rowsOf(0, 14, 20));
    expect(bits(diverged!)).toEqual(bits(otherwise.subarray(14 * VOCABULARY)));
    expect(bits(talk.say(2, ids[0]!.slice(20, 30)))).toEqual(rowsOf(0, 20, 30));
  });

  test('a copy of an empty sequence is empty, a copy onto itself changes nothing', () => {
    const talk = new Talk(driver);
    talk.say(1, ids[1]!.slice(0, 9));
    driver.backend.copySequence(1, 1);
    expect(bits(talk.say(1, ids[1]!.slice(9, 12)))).toEqual(rowsOf(1, 9, 12));
    driver.backend.copySequence(3, 1);
    talk.said[1] = [];
    expect(bits(talk.say(1, ids[1]!.slice(0, 9)))).toEqual(rowsOf(1, 0, 9));
  });

  test.each([0, 1, 13])('saved after %i ids, restored, it goes on with the same bits', (count) => {
    const talk = new Talk(driver);
    if (count > 0) talk.say(0, ids[0]!.slice(0, count));
    const state = talk.save(0);
    driver.backend.resetSequence(0);
    talk.said[0] = [];
    talk.say(0, ids[1]!.slice(0, 16));
    talk.restore(0, state, ids[0]!.slice(0, count));
    expect(bits(talk.say(0, ids[0]!.slice(count, count + 16)))).toEqual(rowsOf(0, count, count + 16));
  });

  test('restored into another place, and into a backend with another context, chunk and threads', () => {
    const talk = new Talk(driver);
    talk.say(1, ids[1]!.slice(0, 16));
    talk.say(1, ids[1]!.slice(16, 19));
    const state = talk.save(1);
    talk.say(3, ids[3]!.slice(0, 5));
    talk.restore(3, state, talk.said[1]!);
    const [first, second] = talk.step([
      [1, ids[1]!.slice(19, 25)],
      [3, ids[1]!.slice(19, 27)],
    ]);
    expect(bits(first!)).toEqual(rowsOf(1, 19, 25));
    expect(bits(second!)).toEqual(rowsOf(1, 19, 27));

    const elsewhere = new Talk(drive(model, { contextLength: 30, maxRows: 11, threads: 2 }));
    elsewhere.restore(2, state, ids[1]!.slice(0, 19));
    expect(bits(elsewhere.say(2, ids[1]!.slice(19, 30)))).toEqual(rowsOf(1, 19, 30));
  });

  test('states of the same moment are the same bytes, and as long as was said', () => {
    const talk = new Talk(driver);
    talk.say(0, ids[0]!.slice(0, 12));
    talk.say(2, ids[0]!.slice(0, 5));
    talk.say(2, ids[0]!.slice(5, 12));
    expect(talk.save(2)).toEqual(talk.save(0));
    const { backend } = driver;
    const perPosition = backend.sequenceBytes(2) - backend.sequenceBytes(1);
    expect(backend.sequenceBytes(64) - backend.sequenceBytes(1)).toBe(63 * perPosition);
    expect(() => backend.sequenceBytes(65)).toThrow('65 positions are more than the context of 64');
  });
});

describe('what is refused', () => {
  const model = tinyModel('qwen35moe');
  const driver = drive(model);
  const ids = someIds(24, VOCABULARY, 5);
  let talk: Talk;
  let state: Uint8Array<ArrayBuffer>;
  let after: Uint32Array;

  beforeAll(() => {
    talk = new Talk(driver);
    talk.say(0, ids.slice(0, 16));
    state = talk.save(0);
    after = bits(talk.say(0, ids.slice(16)));
  });

  /** Tries to restore; whatever came of it, sequence 1 still works and a good state still restores. */
  function tryState(bytes: Uint8Array): string | undefined {
    const code = refusal(() => restoreSequence(driver.backend, 1, bytes));
    expect([undefined, 'STATE_REFUSED']).toContain(code);
    return code;
  }

  function goesOn(sequence: number): void {
    talk.said[sequence] = ids.slice(0, 16);
    expect(bits(talk.say(sequence, ids.slice(16)))).toEqual(after);
  }

  test('a flipped bit, wherever it is', () => {
    fc.assert(
      fc.property(fc.nat(state.length - 1), fc.nat(7), (at, bit) => {
        const damaged = state.slice();
        damaged[at] = damaged[at]! ^ (1 << bit);
        expect(tryState(damaged)).toBe('STATE_REFUSED');
      }),
      { numRuns: 300 },
    );
  });

  test('every bit of the header', () => {
    for (let bit = 0; bit < 48 * 8; bit++) {
      const damaged = state.slice();
      damaged[bit >> 3] = damaged[bit >> 3]! ^ (1 << (bit & 7));
      expect(tryState(damaged), `bit ${bit}`).toBe('STATE_REFUSED');
    }
  });

  test('cut off or too long, anywhere', () => {
    fc.assert(
      fc.property(fc.nat(state.length - 1), (length) => {
        expect(tryState(state.slice(0, length))).toBe('STATE_REFUSED');
      }),
      { numRuns: 200 },
    );
    expect(tryState(new Uint8Array([...state, 0]))).toBe('STATE_REFUSED');
  });

  test('any bytes, and a state with any of its parts replaced', () => {
    const replaced = fc
      .tuple(fc.nat(state.length - 1), fc.uint8Array({ minLength: 1, maxLength: 64 }))
      .map(([at, bytes]) => {
        const damaged = state.slice();
        damaged.set(bytes.subarray(0, damaged.length - at), at);
        return damaged;
      });
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 4096 }), replaced), (bytes) => {
        tryState(bytes);
      }),
      { numRuns: 300 },
    );
  });

  test('a refused state changes nothing; a good one at any address is accepted', () => {
    talk.restore(2, state, ids.slice(0, 16));
    expect(refusal(() => restoreSequence(driver.backend, 2, state.subarray(1)))).toBe('STATE_REFUSED');
    goesOn(2);
    const odd = new Uint8Array(new SharedArrayBuffer(state.length + 3), 3);
    odd.set(state);
    restoreSequence(driver.backend, 3, odd);
    goesOn(3);
  });

  test('a state of another architecture, shape, precision or training', () => {
    const others = [
      drive(tinyModel('qwen3next')),
      drive(tinyModel('qwen3moe')),
      drive(tinyModel('qwen35moe', 2)),
      drive(model, { precision: 'fast' }),
      drive(model, { expertsPerToken: 2 }),
      drive(model, { ropeTheta: 1e6 }),
    ];
    for (const other of others) {
      expect(() => restoreSequence(other.backend, 0, state)).toThrow('of another model');
    }
    // One matrix that was trained further.
    const tensors = model.tensors.map((tensor) =>
      tensor.name === 'attn_q.weight'
        ? { ...tensor, values: tensor.values.map((value) => value * 1.01) }
        : tensor,
    );
    const tuned = drive({ ...model, tensors });
    expect(refusal(() => restoreSequence(tuned.backend, 0, state))).toBe('STATE_REFUSED');
  });

  test('a state that is longer than the context', () => {
    const short = drive(model, { contextLength: 15, maxRows: 15 });
    expect(() => restoreSequence(short.backend, 0, state)).toThrow('16 positions, the context holds 15');
  });

  test('a sequence in the middle of a step cannot be saved or copied; restoring one ends the step', () => {
    const { backend } = driver;
    const row = { token: 1, position: 0, sequence: 0 };
    backend.resetSequence(0);
    backend.resetSequence(1);
    driver.begin([row]);
    backend.mix(0);
    expect(() => backend.saveSequence(0, new Uint8Array(2 ** 20))).toThrow('sequence 0 did not end');
    expect(() => backend.copySequence(0, 1)).toThrow('sequence 0 did not end');
    restoreSequence(backend, 1, state);
    backend.shared(0);
    restoreSequence(backend, 0, state);
    expect(() => backend.shared(0)).toThrow('not the next call');
    goesOn(0);
    goesOn(1);
  });

  test('places that do not exist, arrays that are too short or none, a closed backend', () => {
    const { backend } = driver;
    expect(() => backend.saveSequence(SEQUENCES, state)).toThrow('sequence 4 does not exist');
    expect(() => backend.copySequence(0, SEQUENCES)).toThrow('sequence 4 does not exist');
    expect(() => restoreSequence(backend, SEQUENCES, state)).toThrow('sequence 4 does not exist');
    expect(() => backend.copySequence(-1, 0)).toThrow('from must be a non-negative integer');
    restoreSequence(backend, 0, state);
    const short = new Uint8Array(state.length - 1).fill(7);
    expect(() => backend.saveSequence(0, short)).toThrow(`needs ${state.length} bytes, the array has`);
    expect(short.every((byte) => byte === 7)).toBe(true);
    expect(() => backend.saveSequence(0, bytesOf(new Float32Array(2)).buffer as never)).toThrow(
      'a Uint8Array',
    );
    const closed = drive(model);
    closed.backend.close();
    expect(() => closed.backend.saveSequence(0, state)).toThrow('the backend is closed');
    expect(() => restoreSequence(closed.backend, 0, state)).toThrow('the backend is closed');
  });
});
