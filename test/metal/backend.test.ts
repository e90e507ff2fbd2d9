/**
 * The Metal backend on the emulated GPU, step by step, beside the CPU backend: the same contract, the same numbers to
 * rounding, and what the GPU was given to do.
 */
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import { type BackendConfig, backendError, restoreSequence } from '../../dist/native.js';
import { ARCHITECTURES, bytesOf, Driver, type StepRow, someIds, tinyModel } from '../native/tiny-model.js';
import { relativeRms } from '../support/golden.js';
import { type Emulator, loadEmulated, missingEmulator } from './emulator.js';

const SAME = 2e-5;
const drivers: Driver[] = [];
afterAll(() => {
  for (const driver of drivers) driver.backend.close();
});

function keep(driver: Driver): Driver {
  drivers.push(driver);
  return driver;
}

type Model = ConstructorParameters<typeof Driver>[0];

const onCpu = (model: Model, changes: Partial<BackendConfig> = {}): Driver =>
  keep(new Driver(model, changes));
const onMetal = (model: Model, changes: Partial<BackendConfig> = {}): Driver =>
  keep(new Driver(model, changes, loadEmulated().metal, 16));

const rowsOf = (ids: readonly number[], first = 0, sequence = 0): StepRow[] =>
  ids.map((token, r) => ({ token, position: first + r, sequence }));

/** The code of the error that a backend's call ends with. */
function codeOf(work: () => void): string | undefined {
  try {
    work();
  } catch (cause) {
    const error = backendError(cause);
    return MoestreamError.is(error) ? error.code : `no code: ${String(cause)}`;
  }
  return undefined;
}

describe.skipIf(missingEmulator !== undefined)('beside the CPU', () => {
  describe.each(ARCHITECTURES)('%s', (architecture) => {
    const model = tinyModel(architecture);
    const { vocabulary } = model.config;
    const ids = someIds(30, vocabulary, 7);
    const expected = onCpu(model).sequence(ids, [16]);

    test.each([[[16]], [[13, 1, 4]]])('chunks of %j', (chunks) => {
      expect(relativeRms(onMetal(model).sequence(ids, chunks), expected)).toBeLessThan(SAME);
    });

    test('experts in any order give the same bits', () => {
      const driver = onMetal(model);
      const rows = rowsOf(ids.slice(0, 8));
      const first = driver.step(rows);
      for (const order of [(e: number[]) => e.toReversed(), (e: number[]) => e.toSorted((a, b) => a - b)]) {
        driver.backend.resetSequence(0);
        expect(driver.step(rows, order)).toEqual(first);
      }
    });

    test('sent off one by one, and waited for in between, experts give the same bits', () => {
      const driver = onMetal(model);
      const rows = rowsOf(ids.slice(0, 8));
      const first = driver.step(rows);
      driver.backend.resetSequence(0);
      driver.begin(rows);
      for (let layer = 0; layer < model.config.layers; layer++) {
        driver.backend.mix(layer);
        driver.backend.shared(layer);
        driver.chosen(rows.length).forEach((expert, index) => {
          driver.backend.flush();
          driver.expert(layer, expert);
          if (index === 1) driver.backend.finish();
        });
        driver.backend.combine(layer);
      }
      driver.backend.logits(0, rows.length, 0);
      expect(driver.logits.slice(0, first.length)).toEqual(first);
    });

    test('two sequences in one step give what each alone gives', () => {
      const driver = onMetal(model);
      const other = someIds(30, vocabulary, 8);
      const alone = onCpu(model).sequence(other, [16]);
      const steps = [
        [ids, 0, 0, 7, other, 1, 0, 2],
        [ids, 0, 7, 1, other, 1, 2, 9],
      ] as const;
      for (const [a, sa, fa, na, b, sb, fb, nb] of steps) {
        const rows = [...rowsOf(a.slice(fa, fa + na), fa, sa), ...rowsOf(b.slice(fb, fb + nb), fb, sb)];
        const logits = driver.step(rows);
        const split = na * vocabulary;
        const partOf = (all: Float32Array, from: number, count: number): Float32Array =>
          all.slice(from * vocabulary, (from + count) * vocabulary);
        expect(relativeRms(logits.slice(0, split), partOf(expected, fa, na))).toBeLessThan(SAME);
        expect(relativeRms(logits.slice(split), partOf(alone, fb, nb))).toBeLessThan(SAME);
      }
    });

    test('a sequence saved by the CPU goes on here, a copy goes on like it, and back', () => {
      const cpu = onCpu(model);
      const metal = onMetal(model);
      cpu.sequence(ids.slice(0, 20), [16]);
      const state = new Uint8Array(cpu.backend.sequenceBytes(20));
      cpu.backend.saveSequence(0, state);
      restoreSequence(metal.backend, 0, state);
      metal.backend.copySequence(0, 1);
      const rest = expected.slice(20 * vocabulary);
      for (const sequence of [0, 1])
        expect(relativeRms(metal.step(rowsOf(ids.slice(20), 20, sequence)), rest)).toBeLessThan(SAME);
      const back = new Uint8Array(metal.backend.sequenceBytes(30));
      metal.backend.saveSequence(1, back);
      restoreSequence(cpu.backend, 0, back);
      state[100] = state[100]! ^ 1;
      expect(codeOf(() => restoreSequence(metal.backend, 0, state))).toBe('STATE_REFUSED');
    });
  });

  test.each(['f16', 'q8_0'] as const)('keys and values as %s', (kvType) => {
    const model = tinyModel('qwen3moe', 1, { headDim: 32, rotaryDims: 32, kvType });
    const ids = someIds(20, 61, 3);
    const expected = onCpu(model).sequence(ids, [16]);
    expect(relativeRms(onMetal(model).sequence(ids, [7]), expected)).toBeLessThan(2e-3);
  });
});

describe.skipIf(missingEmulator !== undefined)('what is refused', () => {
  const model = tinyModel('qwen35moe');
  const first = rowsOf([1]);

  test('steps out of order, experts left out, twice and that nobody chose', () => {
    const driver = onMetal(model);
    expect(() => driver.backend.mix(0)).toThrow('not the next call');
    driver.begin(first);
    expect(() => driver.backend.mix(1)).toThrow('mix of layer 1 while layer 0');
    driver.backend.mix(0);
    expect(() => driver.backend.combine(0)).toThrow('before the shared expert');
    driver.backend.shared(0);
    const [left, ...others] = driver.chosen(1);
    for (const expert of others) driver.expert(0, expert);
    expect(() => driver.backend.combine(0)).toThrow(`expert ${left} was chosen and has not run`);
    expect(() => driver.expert(0, others[0]!)).toThrow('has already run');
    const unchosen = [0, 1, 2, 3, 4, 5, 6, 7].find((expert) => expert !== left && !others.includes(expert))!;
    expect(() => driver.expert(0, unchosen)).toThrow('no row chose expert');
    expect(() => driver.backend.expert(0, left!, 1, 2 ** 40, 0, 0)).toThrow(
      'reaches beyond its slab segment',
    );
    driver.expert(0, left!);
    driver.backend.combine(0);
  });

  test('scores that are no numbers', () => {
    const broken = tinyModel('qwen35moe');
    broken.tensors.find((tensor) => tensor.name === 'token_embd.weight')!.values[72] = Number.NaN;
    const driver = onMetal(broken);
    driver.begin(first);
    expect(() => driver.backend.mix(0)).toThrow('the router of layer 0 gives no number');
  });

  test('shapes and addresses that the kernels do not read, as MODEL_UNSUPPORTED', () => {
    const { metal } = loadEmulated();
    const changed = (changes: Partial<BackendConfig>) => () =>
      metal.footprint({ ...model.config, ...changes });
    expect(codeOf(changed({ headDim: 258, rotaryDims: 8 }))).toBe('MODEL_UNSUPPORTED');
    expect(codeOf(changed({ deltaHeadDim: 160 }))).toBe('MODEL_UNSUPPORTED');
    expect(codeOf(changed({ hidden: 70 }))).toBe('MODEL_UNSUPPORTED');
    expect(codeOf(changed({ experts: 2048 }))).toBe('MODEL_UNSUPPORTED');
    const odd = keep(new Driver(model, {}, metal, 3));
    odd.begin(first);
    odd.backend.mix(0);
    expect(codeOf(() => odd.expert(0, odd.chosen(1)[0]!))).toBe('MODEL_UNSUPPORTED');
  });

  test('a sequence whose step was abandoned, until it is reset', () => {
    const driver = onMetal(model);
    const expected = driver.step(rowsOf([1, 2]));
    driver.backend.resetSequence(0);
    driver.begin(rowsOf([1, 2]));
    driver.backend.mix(0);
    driver.backend.abandon();
    expect(() => driver.begin(rowsOf([3], 2))).toThrow('did not end; reset it');
    driver.backend.resetSequence(0);
    expect(driver.step(rowsOf([1, 2]))).toEqual(expected);
    // Nothing is abandoned when a step has ended.
    driver.backend.abandon();
    driver.step(rowsOf([3], 2));
  });
});

describe.skipIf(missingEmulator !== undefined)('what the GPU is given', () => {
  const model = tinyModel('qwen35moe');
  const { layers } = model.config;
  const { emulator, metal } =
    missingEmulator === undefined ? loadEmulated() : ({} as ReturnType<typeof loadEmulated>);
  beforeEach(() => emulator.reset(false));

  test('one command buffer and one wait per layer when every expert is there', () => {
    const driver = onMetal(model);
    driver.step(rowsOf([1]));
    emulator.reset(true);
    driver.step(rowsOf([2], 1));
    const { committed, waits, dispatches } = emulator.counts();
    process.stderr.write(
      `Metal, a token of ${layers} layers, all experts in the slab: ${committed} command buffers, ${waits} waits, ` +
        `${dispatches} dispatches (the reference engines: 3 and 2 per layer)\n`,
    );
    // One before the first layer, one per layer, one for the logits; a wait for each layer's routes and the logits.
    expect(committed).toBe(layers + 2);
    expect(waits).toBe(layers + 1);
    expect(driver.backend.counts!().waits).toBeGreaterThanOrEqual(waits);
    // Between the read-backs of two routers the CPU waits for nothing.
    const order = emulator.events().join(' ');
    expect(order).toBe(`create commit${' wait create commit'.repeat(layers)} create commit wait`);
  });

  test('with reads to wait for, what comes behind them is encoded before they arrive and committed after', () => {
    const driver = onMetal(model);
    driver.step(rowsOf([1]));
    emulator.reset(true);
    driver.begin(rowsOf([2], 1));
    for (let layer = 0; layer < layers; layer++) {
      driver.backend.mix(layer);
      driver.backend.shared(layer);
      const [hit, ...missing] = driver.chosen(1);
      driver.expert(layer, hit!);
      driver.backend.flush(); // as the scheduler does before it sleeps
      for (const expert of missing) {
        driver.expert(layer, expert);
        driver.backend.flush();
      }
      driver.backend.combine(layer);
    }
    driver.backend.logits(0, 1, 0);
    const { committed, waits } = emulator.counts();
    process.stderr.write(`with two reads in every layer: ${committed} command buffers, ${waits} waits\n`);
    // The hit with the shared expert, each arrival, and what was prepared: created second, committed last.
    const layer = ' wait create commit create create commit create commit commit';
    expect(emulator.events().join(' ')).toBe(`create commit${layer.repeat(layers)} create commit wait`);
    expect(waits).toBe(layers + 1);
    expect(committed).toBe(2 + 4 * layers);
  });

  test('an abandoned layer leaves no command buffer behind', () => {
    const driver = onMetal(model);
    driver.begin(rowsOf([1]));
    driver.backend.mix(0);
    driver.backend.shared(0);
    driver.expert(0, driver.chosen(1)[0]!);
    driver.backend.flush();
    expect(uncommitted(emulator)).toBe(1);
    driver.backend.abandon();
    expect(uncommitted(emulator)).toBe(0);
    expect(emulator.counts().discarded).toBe(1);
  });

  test.each([
    ['internal', 'GPU_FAILED'],
    ['memory', 'GPU_FAILED'],
    ['timeout', 'GPU_TIMEOUT'],
    ['removed', 'GPU_LOST'],
  ] as const)('a command buffer that ends with %s is %s, and the next step is right', (failure, code) => {
    const driver = onMetal(model);
    const expected = driver.step(rowsOf([1, 2]));
    for (const commit of [0, 2, layers, layers + 1]) {
      driver.backend.resetSequence(0);
      emulator.reset(false);
      emulator.inject(failure, commit);
      expect(codeOf(() => driver.step(rowsOf([1, 2])))).toBe(code);
      expect(uncommitted(emulator)).toBe(0);
      expect(() => driver.begin(rowsOf([3], 2))).toThrow('did not end; reset it');
      driver.backend.resetSequence(0);
      expect(driver.step(rowsOf([1, 2]))).toEqual(expected);
    }
  });

  test('no device, and kernels that do not compile, are GPU_UNAVAILABLE', () => {
    for (const what of ['noDevice', 'refuseSource'] as const) {
      emulator.inject(what, 1);
      expect(codeOf(() => new metal.Backend(model.config))).toBe('GPU_UNAVAILABLE');
      emulator.reset(false);
    }
  });

  test('closing frees everything', async () => {
    const before = emulator.live();
    const driver = new Driver(model, {}, metal, 16);
    driver.step(rowsOf([1, 2, 3]));
    driver.begin(rowsOf([4], 3));
    driver.backend.mix(0);
    driver.backend.close();
    const left = (): string[] =>
      Object.entries(emulator.live()).flatMap(([name, count]) => (count > (before[name] ?? 0) ? [name] : []));
    // The queue's thread lets go of its last command buffer a moment after that has ended.
    await expect.poll(left).toEqual([]);
  });

  test('the dense weights are kept resident', () => {
    const bytes = emulator.counts().residentBytes;
    onMetal(model);
    const dense = model.tensors.reduce((sum, tensor) => sum + bytesOf(tensor.values).length, 0);
    expect(emulator.counts().residentBytes - bytes).toBeGreaterThanOrEqual(dense);
  });
});

/** Alive, and neither committed nor discarded. */
function uncommitted(emulator: Emulator): number {
  const { created, committed, discarded } = emulator.counts();
  return created - committed - discarded;
}

describe.skipIf(missingEmulator !== undefined)('left-out barriers and bindings', () => {
  test.each(ARCHITECTURES)(
    'every barrier of a step is needed, and found when it is left out: %s',
    (architecture) => {
      const { emulator } = loadEmulated();
      const driver = onMetal(tinyModel(architecture));
      const rows = rowsOf([1, 2, 3, 4, 5, 6]);
      emulator.reset(false);
      const expected = driver.step(rows);
      const { barriers } = emulator.counts();
      const unnoticed: number[] = [];
      for (let barrier = 0; barrier < barriers; barrier++) {
        driver.backend.resetSequence(0);
        emulator.reset(false);
        emulator.inject('dropBarrier', barrier);
        try {
          // What a dispatch only reads of a buffer that it may write shows in the numbers alone.
          if (relativeRms(driver.step(rows), expected) < SAME) unnoticed.push(barrier);
        } catch (error) {
          expect(String(error)).toMatch(/missing memoryBarrier/);
        }
      }
      emulator.reset(false);
      expect(unnoticed, `of ${barriers}`).toEqual([]);
    },
  );

  test('every buffer that is not bound is found', () => {
    const { emulator } = loadEmulated();
    const driver = onMetal(tinyModel('qwen35moe'));
    driver.step(rowsOf([1]));
    for (let binding = 0; binding < 200; binding += 7) {
      driver.backend.resetSequence(0);
      emulator.reset(false);
      emulator.inject('dropBinding', binding);
      expect(() => driver.step(rowsOf([1]))).toThrow(/is not bound|is left over/);
      driver.backend.abandon();
    }
    emulator.reset(false);
  });
});
