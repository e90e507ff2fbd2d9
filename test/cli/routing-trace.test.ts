/** Routing traces: recorded, replayed, and refused when they are not what they say. */
import { existsSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { PlanReport } from '../../dist/cli/plan.js';
import type { SimulateReport } from '../../dist/cli/simulate.js';
import { MoestreamError, open } from '../../dist/index.js';
import { POLICY_DEFAULT } from '../../dist/pipeline/eviction.js';
import {
  encodeHeader,
  encodeRecord,
  encodeTrailer,
  readRoutingTrace,
  recordBytes,
  type TraceHeader,
} from '../../dist/pipeline/routing-trace.js';
import { belady } from '../../dist/simulate/belady.js';
import { replay } from '../../dist/simulate/replay.js';
import { shapeFor } from '../../dist/simulate/shape.js';
import { ENDLESS, runCli } from '../support/cli.js';
import { withEngine } from '../support/engine.js';
import { temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const folder = temporaryFolder();
const env = { XDG_CACHE_HOME: folder };
const MODEL = ['-m', BUILT_IN_MODEL, '--memory', '22M', '--chunk', '8', '-c', '512', '--precision', 'exact'];
const PROMPT = 'tar\n\n> Archiving utility.\n\n- Create an archive from files:\n';

async function record(name: string, ...args: string[]): Promise<string> {
  const path = join(folder, name);
  const run = await runCli(
    ['generate', ...MODEL, '--raw', '--temp', '0', '-q', '--trace-routing', path, ...args, PROMPT],
    { env },
  );
  expect([run.code, run.stderr]).toEqual([0, '']);
  return path;
}

describe('a recorded trace', () => {
  it('holds every choice of every row, in order, as the engine made them', async () => {
    const path = await record('whole.trace', '-n', '12');
    const trace = readRoutingTrace(path);
    expect(trace.ending).toBe('complete');
    expect(existsSync(`${path}.part`)).toBe(false);
    await withEngine(
      { model: BUILT_IN_MODEL, memory: '22M', chunk: 8, contextLength: 512 },
      async (engine) => {
        const ids = engine.promptIds({ raw: PROMPT });
        const { layers, expertsPerToken } = engine.model.hyperparameters;
        const routing = new Int32Array(new SharedArrayBuffer(ids.length * layers * expertsPerToken * 4));
        await engine.logits(ids, () => {}, { routing });
        expect(trace.header).toMatchObject({ layers, expertsPerToken, promptTokens: ids.length });
        // Chunks of 8 rows, each layer by layer.
        let position = 0;
        for (let step = 0; position < ids.length; step++) {
          const [layer, rows] = [trace.stepLayer[step]!, trace.stepRows[step]!];
          expect(rows).toBe(Math.min(8, ids.length - position));
          const from = trace.stepFirst[step]!;
          for (let row = 0; row < rows; row++) {
            const at = ((position + row) * layers + layer) * expertsPerToken;
            expect([
              ...trace.ids.subarray(from + row * expertsPerToken, from + (row + 1) * expertsPerToken),
            ]).toEqual([...routing.subarray(at, at + expertsPerToken)]);
          }
          if (layer === layers - 1) position += rows;
        }
      },
    );
  });

  it('gives a replay the hits that the engine had', async () => {
    const path = join(folder, 'same.trace');
    const options = { model: BUILT_IN_MODEL, memory: '22M', chunk: 8, contextLength: 512, predict: 'none' };
    const { stats, slab } = await withEngine(options, async (engine) => {
      const generation = engine.generate(
        { raw: PROMPT },
        { temperature: 0, maxTokens: 30, traceRouting: path },
      );
      for await (const _ of generation);
      return { stats: generation.result.stats, slab: engine.plan.slab };
    });
    const trace = readRoutingTrace(path);
    const { counters } = replay(trace, {
      shape: slab,
      policy: POLICY_DEFAULT,
      prediction: undefined,
      disk: undefined,
    });
    expect(counters.lookups).toBe(stats.expertLookups);
    // Arrivals may be computed in another order than they were asked for, which moves a few evictions.
    expect(Math.abs(counters.hits - stats.expertHits) / counters.lookups).toBeLessThan(0.02);
    const plan = await runCli(
      [
        'plan',
        BUILT_IN_MODEL,
        '--memory',
        '22M',
        '--chunk',
        '8',
        '-c',
        '512',
        '--kv-type',
        'f32',
        '--routing-trace',
        path,
        '--json',
      ],
      { env },
    );
    const { expected } = JSON.parse(plan.stdout) as PlanReport;
    expect(Math.abs(expected!.hitRate - stats.hitRate)).toBeLessThan(0.02);
  });

  it('is whole and marked when the generation is interrupted', async () => {
    const path = join(folder, 'interrupted.trace');
    let killed = false;
    const run = await runCli(
      [
        ...['generate', ...MODEL, '-q', ...ENDLESS, '-s', '1'],
        ...['-n', '3000', '--trace-routing', path, 'Tell me everything'],
      ],
      {
        env,
        onStdout: (text, kill) => {
          if (killed || text.length < 10) return;
          // Once: a second signal would end it on the spot.
          killed = true;
          kill('SIGINT');
        },
      },
    );
    expect(run.code).toBe(130);
    const trace = readRoutingTrace(path);
    expect(trace.ending).toBe('interrupted');
    expect(trace.steps).toBeGreaterThan(0);
    const simulated = await runCli(['simulate', path], { env });
    expect(simulated.stderr).toMatch(/was interrupted; what there is, is whole/);
  });

  it('is gone when the disk is full, and the generation ends with that error', async ({ skip }) => {
    if (!existsSync('/dev/full')) skip('this system has no /dev/full');
    const path = join(folder, 'full.trace');
    symlinkSync('/dev/full', `${path}.part`);
    const run = await runCli(['generate', ...MODEL, '-q', '-n', '5', '--trace-routing', path, 'tar'], {
      env,
    });
    expect(run.code).toBe(1);
    expect(run.stderr).toMatch(/full\.trace is not written: ENOSPC.*\(DISK_FULL\)/);
    expect([existsSync(path), existsSync(`${path}.part`)]).toEqual([false, false]);
  });

  it('to a folder that there is not is refused before anything is generated', async () => {
    const engine = await open({ model: BUILT_IN_MODEL, memory: '22M' });
    const generation = engine.generate('tar', { traceRouting: join(folder, 'none', 'x.trace') });
    await expect(generation[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: 'WRITE_FAILED' });
    const again = engine.generate('tar', { maxTokens: 2, temperature: 0 });
    for await (const _ of again);
    expect(again.result.stats.answerTokens).toBe(2);
    await engine.close();
  });
});

const HEADER: TraceHeader = {
  layers: 3,
  experts: 8,
  expertsPerToken: 2,
  promptTokens: 0,
  identity: new Uint8Array(32),
  expertBytes: [1000, 1000, 50_000],
};

function traceBytes(tokens: readonly (readonly (readonly number[])[])[], header = HEADER): Buffer {
  const each = recordBytes(header.expertsPerToken);
  const body = Buffer.alloc(tokens.length * header.layers * each);
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  const weights = Float32Array.of(0.75, 0.25);
  tokens.forEach((layers, position) => {
    layers.forEach((ids, layer) => {
      const at = (position * header.layers + layer) * each;
      encodeRecord(view, at, { position, layer, rowsLeft: 0 }, Int32Array.from(ids), 0, weights, 0, 2);
    });
  });
  return Buffer.concat([
    encodeHeader(header),
    body,
    encodeTrailer(tokens.length * header.layers, 'complete'),
  ]);
}

const pair = fc.uniqueArray(fc.nat(7), { minLength: 2, maxLength: 2 });
const tokens = fc.array(fc.tuple(pair, pair, pair), { minLength: 1, maxLength: 60 });

describe('a trace file', () => {
  const path = join(folder, 'file.trace');
  const good = traceBytes(
    Array.from({ length: 20 }, (_, at) => [
      [at % 8, (at + 1) % 8],
      [0, 1],
      [2, 3],
    ]),
  );
  const changed = (change: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(good);
    change(bytes);
    return bytes;
  };
  const firstRecord = 64 + 3 * 8;

  it.each<[string, Buffer, RegExp]>([
    ['nothing', Buffer.alloc(0), /ends at byte 0/],
    ['another magic', changed((bytes) => bytes.write('GGUF')), /begins with other bytes/],
    ['another version', changed((bytes) => bytes.writeUInt32LE(9, 8)), /version 9/],
    ['no layers', changed((bytes) => bytes.writeUInt32LE(0, 12)), /layers is 0/],
    ['four billion layers', changed((bytes) => bytes.writeUInt32LE(0xffffffff, 12)), /layers is 4294967295/],
    [
      'four billion experts',
      changed((bytes) => bytes.writeUInt32LE(0xffffffff, 16)),
      /experts is 4294967295/,
    ],
    ['more chosen than there are', changed((bytes) => bytes.writeUInt32LE(9, 20)), /experts per token is 9/],
    ['experts of no bytes', changed((bytes) => bytes.writeBigUInt64LE(0n, 72)), /layer 1 has 0 bytes/],
    [
      'an expert beyond',
      changed((bytes) => bytes.writeUInt16LE(8, firstRecord + 8)),
      /record 0 has expert 8 of 8/,
    ],
    ['a layer beyond', changed((bytes) => bytes.writeUInt16LE(3, firstRecord + 4)), /record 0 has layer 3/],
    ['rows that do not come', changed((bytes) => bytes.writeUInt16LE(5, firstRecord + 6)), /record 1 has/],
    ['a wrong count', changed((bytes) => bytes.writeUInt32LE(7, bytes.length - 16)), /counts 7 records/],
    [
      'an ending that there is not',
      changed((bytes) => bytes.writeUInt32LE(7, bytes.length - 8)),
      /trailer is damaged/,
    ],
  ])('with %s is refused with its place', async (_name, bytes, why) => {
    writeFileSync(path, bytes);
    expect(() => readRoutingTrace(path)).toThrow(why);
    try {
      readRoutingTrace(path);
    } catch (error) {
      expect(error).toMatchObject({ code: 'TRACE_INVALID' });
    }
  });

  it('cut anywhere is read as far as it goes, or refused; nothing else happens', () => {
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.nat(255), fc.nat(good.length - 1), (length, byte, at) => {
        const bytes = Buffer.from(good.subarray(0, length));
        if (at < length) bytes[at] = byte;
        writeFileSync(path, bytes);
        try {
          const trace = readRoutingTrace(path);
          expect(trace.steps).toBeLessThanOrEqual(60);
          const shape = shapeFor(trace.header, 6);
          replay(trace, { shape, policy: 'lru', prediction: undefined, disk: undefined });
        } catch (error) {
          expect(MoestreamError.is(error) && error.code).toBe('TRACE_INVALID');
        }
      }),
      { numRuns: 300 },
    );
  });

  it('never hits more than the optimum, whatever the policy', () => {
    fc.assert(
      fc.property(tokens, fc.integer({ min: 6, max: 24 }), (made, slots) => {
        writeFileSync(path, traceBytes(made));
        const trace = readRoutingTrace(path);
        const shape = shapeFor(trace.header, slots);
        const best = belady(trace, shape);
        for (const policy of ['lru', 'lfru', 's3fifo'] as const) {
          const { counters } = replay(trace, { shape, policy, prediction: undefined, disk: undefined });
          expect(counters.lookups).toBe(best.lookups);
          expect(counters.hits).toBeLessThanOrEqual(best.hits);
        }
      }),
    );
  });

  it('is the optimum of all choices, tried out', () => {
    const small = fc.array(fc.tuple(fc.nat(3), fc.nat(3)), { minLength: 1, maxLength: 7 });
    const header = { ...HEADER, layers: 1, experts: 4, expertsPerToken: 1, expertBytes: [1000] };
    fc.assert(
      fc.property(small, fc.integer({ min: 1, max: 3 }), (pairs, slots) => {
        const order = pairs.flat();
        const each = recordBytes(1);
        const body = Buffer.alloc(order.length * each);
        const view = new DataView(body.buffer, body.byteOffset, body.length);
        order.forEach((expert, position) => {
          const head = { position, layer: 0, rowsLeft: 0 };
          encodeRecord(view, position * each, head, Int32Array.of(expert), 0, Float32Array.of(1), 0, 1);
        });
        writeFileSync(
          path,
          Buffer.concat([encodeHeader(header), body, encodeTrailer(order.length, 'complete')]),
        );
        const trace = readRoutingTrace(path);
        expect(belady(trace, shapeFor(header, slots)).hits).toBe(mostHits(order, slots));
      }),
    );
  });
});

/** Tries every choice of whom to give up, or not to keep. */
function mostHits(order: readonly number[], slots: number, held: readonly number[] = [], at = 0): number {
  if (at === order.length) return 0;
  const key = order[at]!;
  if (held.includes(key)) return 1 + mostHits(order, slots, held, at + 1);
  const choices = [held, ...(held.length < slots ? [[...held, key]] : [])];
  for (const victim of held) choices.push([...held.filter((each) => each !== victim), key]);
  return Math.max(
    ...choices.filter((each) => each.length <= slots).map((each) => mostHits(order, slots, each, at + 1)),
  );
}

describe('simulate', () => {
  it('lists policies, sizes and predictors in one table, and as JSON', async () => {
    const path = await record('simulate.trace', '-n', '12');
    const args = [
      'simulate',
      path,
      '--slots',
      '25%,200',
      '--predict',
      'none,auto+markov',
      '--compute-micros',
      '100',
    ];
    const run = await runCli([...args, '--disk-speed', '2', '--json'], { env });
    const report = JSON.parse(run.stdout) as SimulateReport;
    // Three policies, two predictors and the optimum, for two sizes.
    expect(report.rows.map(({ slots }) => slots)).toEqual([...Array(7).fill(64), ...Array(7).fill(200)]);
    for (const row of report.rows.slice(0, 6)) {
      expect(row.stallMicros).toBeGreaterThan(0);
      if (row.predict === 'none') expect(row.hitRate).toBeLessThanOrEqual(report.rows[6]!.hitRate);
    }
    const text = await runCli([...args, '--disk-speed', '2'], { env });
    expect(text.stdout).toMatch(/^ +64 +25 % +belady +none +[\d.]+ %/m);
    expect(text.stdout).toMatch(/million lookups a second/);
  });

  it.each([
    [['--policy', 'mru'], /no eviction policy is called "mru"/],
    [['--slots', '0'], /slots "0" is no number/],
    [['--slots', '200%'], /slots "200%"/],
    [['--predict', 'lookahead'], /asks the routers/],
    [['--predict', 'somebody'], /no such predictor/],
    [['--lookahead', '9'], /lookahead is 9/],
    [['--disk-speed', '2'], /says nothing without --compute-micros/],
    [['--disk-speed', '0', '--compute-micros', '5'], /must be above 0/],
    [['--compute-micros', '5'], /is not measured/],
  ])('refuses %j in one sentence', async (args, why) => {
    const path = join(folder, 'usage.trace');
    writeFileSync(
      path,
      traceBytes([
        [
          [0, 1],
          [0, 1],
          [0, 1],
        ],
      ]),
    );
    const run = await runCli(['simulate', path, ...args], { env });
    expect([run.code, run.stdout]).toEqual([2, '']);
    expect(run.stderr).toMatch(why);
  });

  it('of a file that is none says so; plan refuses the trace of another model', async () => {
    const run = await runCli(['simulate', BUILT_IN_MODEL], { env });
    expect(run.code).toBe(2);
    expect(run.stderr).toMatch(/no routing trace: it begins with other bytes \(TRACE_INVALID\)/);
    const other = join(folder, 'other.trace');
    writeFileSync(
      other,
      traceBytes([
        [
          [0, 1],
          [0, 1],
          [0, 1],
        ],
      ]),
    );
    const plan = await runCli(['plan', BUILT_IN_MODEL, '--routing-trace', other], { env });
    expect(plan.code).toBe(2);
    expect(plan.stderr).toMatch(/is of another model: 3 layers of 8 experts/);
    expect(readFileSync(other).length).toBeGreaterThan(0);
  });
});
