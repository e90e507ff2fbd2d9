/**
 * What tracing costs: tokens per second with tracing on, off, and with every hook taken out of the compiled files.
 *
 * Three engines of one model stand open and take turns, in another order each round, so that what else the machine does
 * meets all of them; what is compared is each round with itself. "Without hooks" is a copy of dist/ from which the calls of
 * the tracer are removed, which is what tracing that is off should cost nothing against. The built-in model is the hard
 * case: a token takes half a millisecond and some two hundred hooks.
 *
 * Whole tokens differ by more from round to round than hooks that are off can cost. So the cost is also counted: hooks per
 * token, from the run with tracing on, times what a hook costs in the real scheduler alone (scheduler-step.ts, with and
 * without), and times what it costs interpreted, which no compiled hook can exceed. Run: npm run bench:trace [-- MODEL]
 * [--rounds 40] [--tokens 200] [--memory 24M]
 */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { median } from '#dist/eval/statistics.js';
import { type Engine, type GenerationStats, type OpenOptions, open } from '#dist/index.js';
import {
  createTraceRing,
  NO_TRACER,
  sharedMillis,
  TRACE,
  TraceReader,
  Tracer,
} from '#dist/pipeline/trace.js';
import { HOOKS_OF_A_STEP, layerSteps } from './scheduler-step.js';

const root = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '40' },
    tokens: { type: 'string', default: '200' },
    memory: { type: 'string' },
  },
});
const model = positionals[0] ?? root('models/tldr-UD_Q3_K_XL.gguf');
const rounds = Number(values.rounds);
const maxTokens = Number(values.tokens);

/** `trace.lap(...);`, whatever holds the tracer. The compiled files end every statement with a semicolon. */
const HOOK = /\b(?:this\.)?trace\.(?:lap|mark|markLap|span|beginLaps)\([^;]*\);/g;
const HOOKS_LEAST = 20;

/** A copy of the compiled package without hooks. */
function withoutHooks(folder: string): string {
  cpSync(root('dist'), join(folder, 'dist'), { recursive: true });
  for (const name of ['node_modules', 'build', 'package.json']) symlinkSync(root(name), join(folder, name));
  let taken = 0;
  const workers = join(folder, 'dist/workers');
  for (const name of readdirSync(workers).filter((each) => each.endsWith('.js'))) {
    const source = readFileSync(join(workers, name), 'utf8');
    const stripped = source.replace(HOOK, () => {
      taken++;
      return '';
    });
    writeFileSync(join(workers, name), stripped);
  }
  if (taken < HOOKS_LEAST)
    throw new Error(`only ${taken} hooks were found: this bench looks for the wrong text`);
  console.log(`${taken} hooks taken out of the copy`);
  return join(folder, 'dist');
}

async function statsOfARun(engine: Engine): Promise<GenerationStats> {
  const answer = engine.generate(
    { ids: [1, 2, 3, 4, 5, 6, 7, 8] },
    { temperature: 99, topK: 0, topP: 1, minP: 0, seed: 1, maxTokens },
  );
  for await (const _ of answer);
  return answer.result.stats;
}

async function microsPerToken(engine: Engine): Promise<number> {
  const { decodeMicros, answerTokens } = await statsOfARun(engine);
  return decodeMicros / Math.max(1, answerTokens - 1);
}

async function tokensOfARun(engine: Engine): Promise<number> {
  return Math.max(1, (await statsOfARun(engine)).answerTokens - 1);
}

/** Median of the differences by round, and the range that holds the true one nineteen times of twenty. */
function difference(of: readonly number[], than: readonly number[]): string {
  const shares = of
    .map((value, round) => (100 * (value - than[round]!)) / than[round]!)
    .toSorted((a, b) => a - b);
  // The ranks between which a median lies: the binomial distribution, by its normal shape.
  const reach = Math.ceil(0.98 * Math.sqrt(shares.length));
  const middle = (shares.length - 1) / 2;
  const at = (rank: number): string =>
    shares[Math.min(shares.length - 1, Math.max(0, Math.round(rank)))]!.toFixed(2);
  return `${median(shares).toFixed(2).padStart(6)} %  (${at(middle - reach)} to ${at(middle + reach)})`;
}

/** Nanoseconds of a hook that is off: in the compiled scheduler, and interpreted. */
interface HookNanos {
  readonly compiled: number;
  readonly interpreted: number;
}

/** What the hooks of a token come to while tracing is off, by the events that they leave while it is on. */
function countedCost(traced: Engine, decodedTokens: number, microsPerToken: number, nanos: HookNanos): void {
  const { threads } = traced.trace;
  const events = threads.reduce((sum, { role, log }) => sum + (role === 'main' ? 0 : log.count), 0);
  const hooks = events / decodedTokens;
  const share = (each: number): string => `${((hooks * each) / (10 * microsPerToken)).toFixed(3)} %`;
  console.log(
    `${hooks.toFixed(0)} hooks per token on all threads; off, they cost ${share(nanos.compiled)} of a token, ` +
      `${share(nanos.interpreted)} if every one were interpreted`,
  );
}

async function compare(
  name: string,
  options: OpenOptions,
  strippedDist: string,
  nanos: HookNanos,
): Promise<void> {
  const stripped = (await import(pathToFileURL(join(strippedDist, 'index.js')).href)) as {
    open: typeof open;
  };
  const variants = [
    { name: 'without hooks', engine: await stripped.open(options) },
    { name: 'tracing off', engine: await open(options) },
    { name: 'tracing on', engine: await open({ ...options, trace: true }) },
  ];
  const micros: number[][] = variants.map(() => []);
  for (let round = -2; round < rounds; round++) {
    for (let turn = 0; turn < variants.length; turn++) {
      const index = (round + 2 + turn) % variants.length;
      const found = await microsPerToken(variants[index]!.engine);
      // Two rounds to warm up.
      if (round >= 0) micros[index]!.push(found);
    }
  }
  console.log(`\n${name}: ${rounds} rounds of up to ${maxTokens} tokens`);
  variants.forEach((variant, index) => {
    const than = index === 0 ? '' : `  against without hooks ${difference(micros[index]!, micros[0]!)}`;
    console.log(
      `${variant.name.padEnd(14)} ${median(micros[index]!).toFixed(1).padStart(9)} us per token${than}`,
    );
  });
  // The log holds one run; its prompt is a few hooks among thousands.
  const last = variants[2]!.engine;
  countedCost(last, await tokensOfARun(last), median(micros[1]!), nanos);
  for (const { engine } of variants) await engine.close();
}

/** Nanoseconds of one hook, called from a loop of its own. */
function hookCost(): void {
  const handle = createTraceRing(65_536, sharedMillis());
  const reader = new TraceReader(handle);
  const tracers = { off: NO_TRACER, on: new Tracer(handle) };
  for (const [name, tracer] of Object.entries(tracers)) {
    const batches: number[] = [];
    for (let batch = 0; batch < 100; batch++) {
      const began = performance.now();
      for (let call = 0; call < 50_000; call++) tracer.lap(TRACE.mix, 1, call, 0, 0);
      batches.push(((performance.now() - began) * 1e6) / 50_000);
      reader.discard();
    }
    console.log(`one hook, tracing ${name}: ${median(batches).toFixed(1)} ns`);
  }
}

/** The scheduler's layer step with and without hooks, in turns; nanoseconds per hook. */
async function compiledNanos(strippedDist: string): Promise<number> {
  const [hooked, stripped] = [await layerSteps(root('dist')), await layerSteps(strippedDist)];
  const differences: number[] = [];
  const steps: number[] = [];
  for (let batch = -20; batch < 201; batch++) {
    // Who goes first changes, because the second finds the processor warm.
    const first = batch % 2 === 0 ? hooked(5000) : stripped(5000);
    const second = batch % 2 === 0 ? stripped(5000) : hooked(5000);
    if (batch < 0) continue;
    const [on, off] = batch % 2 === 0 ? [first, second] : [second, first];
    differences.push((on - off) / HOOKS_OF_A_STEP);
    steps.push(off);
  }
  const each = median(differences);
  console.log(
    `one layer step without hooks: ${median(steps).toFixed(0)} ns; with ${HOOKS_OF_A_STEP} that are off, ` +
      `${each.toFixed(2)} ns more for each`,
  );
  return Math.max(0, each);
}

/** Nanoseconds of a hook that no compiler has seen, the loop around it included. */
function interpretedNanos(): number {
  const script = `
    import { NO_TRACER, TRACE } from ${JSON.stringify(pathToFileURL(root('dist/pipeline/trace.js')).href)};
    const began = performance.now();
    for (let call = 0; call < 2_000_000; call++) NO_TRACER.lap(TRACE.mix, 1, call, 0, 0);
    console.log(((performance.now() - began) * 1e6) / 2_000_000);
  `;
  const flags = ['--no-opt', '--no-sparkplug', '--no-maglev', '--input-type=module', '--eval', script];
  const nanos = Number(execFileSync(process.execPath, flags, { encoding: 'utf8' }));
  console.log(`one hook, tracing off and interpreted: ${nanos.toFixed(1)} ns`);
  return nanos;
}

const folder = mkdtempSync(join(tmpdir(), 'moestream-trace-'));
try {
  hookCost();
  const strippedDist = withoutHooks(folder);
  const nanos = { compiled: await compiledNanos(strippedDist), interpreted: interpretedNanos() };
  const fixed = {
    model,
    contextLength: 512,
    ...(values.memory === undefined ? {} : { memory: values.memory }),
  };
  if (values.memory !== undefined || positionals.length > 0)
    await compare('the model', fixed, strippedDist, nanos);
  else {
    await compare('built-in model, all in memory', { ...fixed, memory: '200M' }, strippedDist, nanos);
    await compare('built-in model, streaming', { ...fixed, memory: '24M' }, strippedDist, nanos);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
