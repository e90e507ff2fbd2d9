/**
 * The CPU backend against a float64 forward pass, and against itself: the exact precision promises the same bits for
 * any chunking, any number of threads, any order of experts and any company in a batch.
 */
import { afterAll, describe, expect, test } from 'vitest';
import { loadCpu } from '../../dist/native.js';
import { Reference } from './reference.js';
import { ARCHITECTURES, bytesOf, Driver, setTensors, someIds, tinyConfig, tinyModel } from './tiny-model.js';

const cpu = loadCpu();
const drivers: Driver[] = [];
afterAll(() => {
  for (const driver of drivers) driver.backend.close();
});

function drive(...args: ConstructorParameters<typeof Driver>): Driver {
  const driver = new Driver(...args);
  drivers.push(driver);
  return driver;
}

function bits(values: Float32Array): Uint32Array {
  return new Uint32Array(values.slice().buffer);
}

function relativeRms(found: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let scale = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (found[i]! - expected[i]!) ** 2;
    scale += expected[i]! ** 2;
  }
  return Math.sqrt(difference / scale);
}

describe.each(ARCHITECTURES)('%s', (architecture) => {
  const model = tinyModel(architecture);
  const ids = someIds(30, model.config.vocabulary, 7);
  const driver = drive(model);
  const whole = driver.sequence(ids, [16]);

  test('gives the logits of the float64 forward pass, to 1e-5', () => {
    const expected = new Reference(model).forward(ids);
    // A nearer tie could be decided the other way in float32, and would be no fault of the backend.
    expect(expected.smallestMargin).toBeGreaterThan(1e-4);
    expected.logits.forEach((row, t) => {
      const { vocabulary } = model.config;
      const found = whole.subarray(t * vocabulary, (t + 1) * vocabulary);
      expect(relativeRms(found, row), `token ${t}`).toBeLessThan(1e-5);
    });
  });

  test('chooses the experts of the float64 forward pass, weights adding up to 1', () => {
    const { routes } = new Reference(model).forward(ids.slice(0, 1));
    driver.backend.resetSequence(0);
    driver.begin([{ token: ids[0]!, position: 0, sequence: 0 }]);
    driver.backend.mix(0);
    expect([...driver.ids.subarray(0, 3)]).toEqual(routes[0]![0]);
    const weights = [...driver.weights.subarray(0, 3)];
    expect(weights).toEqual(weights.toSorted((a, b) => b - a));
    expect(weights.reduce((sum, each) => sum + each, 0)).toBeCloseTo(1, 6);
  });

  test.each([[[1]], [[2]], [[5]], [[1, 16]], [[13, 1, 4]]])('chunks of %j give the same bits', (chunks) => {
    expect(bits(driver.sequence(ids, chunks))).toEqual(bits(whole));
  });

  test.each([2, 3, 4])('%i threads give the same bits', (threads) => {
    const other = drive(model, { threads });
    expect(bits(other.sequence(ids, [16]))).toEqual(bits(whole));
    expect(bits(other.sequence(ids, [1]))).toEqual(bits(whole));
  });

  test('experts in any order give the same bits', () => {
    const rows = ids.slice(0, 8).map((token, position) => ({ token, position, sequence: 0 }));
    for (const order of [(e: number[]) => e.toReversed(), (e: number[]) => e.toSorted((a, b) => a - b)]) {
      driver.backend.resetSequence(0);
      expect(bits(driver.step(rows, order))).toEqual(bits(whole.subarray(0, 8 * model.config.vocabulary)));
    }
  });

  test('two interleaved sequences give the bits of each alone', () => {
    const other = someIds(30, model.config.vocabulary, 8);
    const alone = [whole, driver.sequence(other, [16])];
    const together = [new Float32Array(whole.length), new Float32Array(whole.length)];
    const { vocabulary } = model.config;
    const next = [0, 0];
    driver.backend.resetSequence(0);
    driver.backend.resetSequence(1);
    // Sequence and rows of each part of a step: prefill beside decode, in both orders, and one alone.
    const steps = [
      [
        [0, 7],
        [1, 1],
      ],
      [
        [1, 9],
        [0, 1],
      ],
      [
        [1, 1],
        [0, 1],
      ],
      [[0, 11]],
      [
        [0, 10],
        [1, 5],
      ],
      [[1, 14]],
    ];
    for (const parts of steps) {
      const rows = parts.flatMap(([sequence, count]) =>
        Array.from({ length: count! }, () => {
          const position = next[sequence!]!++;
          return { token: (sequence === 0 ? ids : other)[position]!, position, sequence: sequence! };
        }),
      );
      const logits = driver.step(rows);
      rows.forEach(({ sequence, position }, r) => {
        together[sequence]!.set(logits.subarray(r * vocabulary, (r + 1) * vocabulary), position * vocabulary);
      });
    }
    expect(next).toEqual([30, 30]);
    expect(bits(together[0]!)).toEqual(bits(alone[0]!));
    expect(bits(together[1]!)).toEqual(bits(alone[1]!));
  });

  test('logits of some rows go to the slots that were asked for', () => {
    const { vocabulary } = model.config;
    driver.sequence(ids.slice(0, 8), [8]);
    driver.logits.fill(-1);
    driver.backend.logits(5, 2, 3);
    expect(bits(driver.logits.subarray(3 * vocabulary, 5 * vocabulary))).toEqual(
      bits(whole.subarray(5 * vocabulary, 7 * vocabulary)),
    );
    expect(driver.logits.subarray(0, 3 * vocabulary).every((value) => value === -1)).toBe(true);
    expect(driver.logits.subarray(5 * vocabulary).every((value) => value === -1)).toBe(true);
  });
});

describe('what is refused', () => {
  const model = tinyModel('qwen35moe');
  const first = { token: 1, position: 0, sequence: 0 };

  test('a missing tensor, by name', () => {
    for (const [name, layer] of [
      ['attn_q.weight', 3],
      ['ssm_alpha.weight', 1],
      ['post_attention_norm.weight', 2],
    ] as const) {
      const backend = new cpu.Backend(model.config);
      setTensors(backend, model, (tensor) => tensor.name === name && tensor.layer === layer);
      expect(() => backend.seal()).toThrow(`blk.${layer}.${name} is missing`);
      backend.close();
    }
  });

  test('a wrong shape, by name and both shapes; the right tensor then seals it', () => {
    const backend = new cpu.Backend(model.config);
    setTensors(
      backend,
      model,
      (tensor) => tensor.name === 'attn_k.weight' || tensor.name === 'attn_v.weight',
    );
    const wrong = new Float32Array(72 * 47);
    backend.setTensor('attn_k.weight', 3, 0, 72, 47, bytesOf(wrong));
    expect(() => backend.seal()).toThrow('blk.3.attn_k.weight has shape [72, 47], the model needs [72, 48]');
    backend.close();
  });

  test('sealing fails without a trace: what is given later completes it', () => {
    const backend = new cpu.Backend(model.config);
    const late = model.tensors.find((tensor) => tensor.name === 'output_norm.weight')!;
    setTensors(backend, model, (tensor) => tensor === late);
    expect(() => backend.seal()).toThrow('output_norm.weight is missing');
    backend.setTensor(late.name, late.layer, 0, late.cols, late.rows, bytesOf(late.values));
    backend.seal();
    backend.close();
  });

  test('tensors without a use, given twice, of unknown type or with too few bytes', () => {
    const backend = new cpu.Backend(model.config);
    const norm = bytesOf(new Float32Array(72));
    expect(() => backend.setTensor('attn_q.bias', 3, 0, 72, 1, norm)).toThrow('blk.3.attn_q.bias');
    expect(() => backend.setTensor('attn_q.weight', 0, 0, 72, 1, norm)).toThrow(
      'no place in this kind of layer',
    );
    expect(() => backend.setTensor('attn_norm.weight', 4, 0, 72, 1, norm)).toThrow('beyond the last layer');
    expect(() => backend.setTensor('attn_norm.weight', 0, 0, 72, 2, norm)).toThrow(
      '288 bytes, its shape needs 576',
    );
    expect(() => backend.setTensor('attn_norm.weight', 0, 31, 72, 1, norm)).toThrow('unsupported type 31');
    expect(() => backend.setTensor('attn_norm.weight', 0, 8, 72, 1, norm)).toThrow(
      'not whole blocks of Q8_0',
    );
    backend.setTensor('attn_norm.weight', 0, 0, 72, 1, norm);
    expect(() => backend.setTensor('attn_norm.weight', 0, 0, 72, 1, norm)).toThrow('given twice');
    expect(() => backend.setExpertTypes(0, 0, 0, 12)).toThrow('not whole blocks of Q4_K');
    backend.close();
  });

  test('a step out of order', () => {
    const driver = drive(model);
    expect(() => driver.backend.mix(0)).toThrow('not the next call');
    driver.begin([first]);
    expect(() => driver.backend.mix(1)).toThrow('mix of layer 1 while layer 0');
    driver.backend.mix(0);
    expect(() => driver.backend.mix(0)).toThrow('not the next call');
    expect(() => driver.backend.logits(0, 1, 0)).toThrow('not the next call');
    expect(() => driver.backend.combine(0)).toThrow('before the shared expert');
  });

  test('a sum with an expert left out, an expert run twice and one that nobody chose', () => {
    const driver = drive(model);
    driver.begin([first]);
    driver.backend.mix(0);
    driver.backend.shared(0);
    const [left, ...others] = driver.chosen(1);
    for (const expert of others) driver.expert(0, expert);
    expect(() => driver.backend.combine(0)).toThrow(`expert ${left} was chosen and has not run`);
    expect(() => driver.expert(0, others[0]!)).toThrow('has already run');
    const unchosen = [0, 1, 2, 3, 4, 5, 6, 7].find((expert) => expert !== left && !others.includes(expert))!;
    expect(() => driver.expert(0, unchosen)).toThrow('no row chose expert');
    driver.expert(0, left!);
    driver.backend.combine(0);
  });

  test('an expert outside its segment', () => {
    const driver = drive(model);
    driver.begin([first]);
    driver.backend.mix(0);
    const [expert] = driver.chosen(1);
    expect(() => driver.backend.expert(0, expert!, 1, 2 ** 40, 0, 0)).toThrow(
      'reaches beyond its slab segment',
    );
    expect(() => driver.backend.expert(0, expert!, 0, 0, 0, 0)).toThrow('reaches beyond its slab segment');
    expect(() => driver.backend.expert(0, expert!, 2, 0, 0, 0)).toThrow('segment 2 is not bound');
  });

  test('rows that do not continue their sequence', () => {
    const driver = drive(model);
    expect(() => driver.begin([{ ...first, position: 1 }])).toThrow('goes on at 0');
    expect(() => driver.begin([{ ...first, token: 61 }])).toThrow('token 61');
    expect(() => driver.begin([{ ...first, token: -1 }])).toThrow('token -1');
    expect(() => driver.begin([{ ...first, sequence: 2 }])).toThrow('sequence 2');
    const other = { ...first, sequence: 1 };
    expect(() => driver.begin([first, other, { ...first, position: 1 }])).toThrow('must stand together');
    driver.sequence(someIds(64, 61, 1), [16]);
    expect(() => driver.begin([{ ...first, position: 64 }])).toThrow('goes on at 64 of 64');
  });

  test('a sequence whose last step did not end, until it is reset', () => {
    const driver = drive(model);
    const expected = driver.sequence([1, 2], [2]);
    driver.backend.resetSequence(0);
    driver.begin([first]);
    driver.backend.mix(0);
    driver.rows.fill(0);
    expect(() => driver.begin([{ ...first, position: 1 }])).toThrow('did not end; reset it');
    expect(bits(driver.sequence([1, 2], [2]))).toEqual(bits(expected));
  });

  test('scores that are no numbers', () => {
    const broken = tinyModel('qwen35moe');
    broken.tensors.find((tensor) => tensor.name === 'token_embd.weight')!.values[72] = Number.NaN;
    const driver = drive(broken);
    driver.begin([first]);
    expect(() => driver.backend.mix(0)).toThrow('the router of layer 0 gives no number');
  });

  test('arguments of a wrong kind, with a TypeError', () => {
    const driver = drive(model);
    type Untyped = Record<'mix' | 'bindRows' | 'bindSlab', (...args: unknown[]) => void>;
    const anything = driver.backend as unknown as Untyped;
    expect(() => anything.mix('0')).toThrow(TypeError);
    expect(() => anything.mix(0.5)).toThrow(TypeError);
    expect(() => anything.mix()).toThrow(TypeError);
    expect(() => anything.bindRows(new Uint32Array(64))).toThrow(TypeError);
    expect(() => anything.bindSlab(new Uint8Array(64))).toThrow(TypeError);
    expect(() => new cpu.Backend(tinyConfig('qwen3moe', { precision: 'faster' as 'fast' }))).toThrow(
      TypeError,
    );
    expect(() => new cpu.Backend({} as never)).toThrow(TypeError);
    expect(() => new cpu.Backend(tinyConfig('qwen3moe', { kvHeads: 3 }))).toThrow('multiple of kvHeads');
  });

  test('anything after close', () => {
    const driver = new Driver(model, { threads: 3 });
    driver.backend.close();
    driver.backend.close();
    expect(() => driver.backend.begin(1)).toThrow('closed');
  });
});

describe('footprint', () => {
  test('counts keys, values and states exactly, and grows with rows', () => {
    const config = tinyConfig('qwen35moe');
    const found = cpu.footprint(config);
    const floats = 4;
    expect(found.kvBytes).toBe(2 * 1 * 2 * (2 * 64 * 24) * floats);
    expect(found.stateBytes).toBe(2 * 3 * (3 * 160 + 6 * 16 * 16) * floats);
    expect(cpu.footprint({ ...config, maxRows: 32 }).scratchBytes).toBeGreaterThan(found.scratchBytes);
  });

  test('a context far beyond memory can be planned and opened: only what is used costs anything', () => {
    const config = tinyConfig('qwen3moe', { contextLength: 2 ** 22 });
    expect(cpu.footprint(config).kvBytes).toBeGreaterThan(2 ** 31);
    const driver = drive(tinyModel('qwen3moe'), { contextLength: 2 ** 22 });
    expect(bits(driver.sequence([1, 2, 3], [2]))).toEqual(
      bits(drive(tinyModel('qwen3moe')).sequence([1, 2, 3], [3])),
    );
  });

  test('sizes beyond any address are refused', () => {
    expect(() => cpu.footprint(tinyConfig('qwen35moe', { contextLength: 2 ** 52 }))).toThrow('too large');
  });
});
