/**
 * What tracing costs: tokens per second with tracing on, off, and with every hook taken out of the compiled files.
 *
 * Three engines of one model stand open and take turns, in another order each round, so that what else the machine does
 * meets all of them; what is compared is each round with itself. "Without hooks" is a copy of dist/ from which the calls of
 * the tracer are removed, which is what tracing that is off should cost nothing against. The built-in model is the hard
 * case: a token takes half a millisecond and some two hundred hooks. Run: npm run bench:trace [-- MODEL]
 * [--rounds 40] [--tokens 200] [--memory 24M]
 */
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { type Engine, type OpenOptions, open } from '#dist/index.js';
import {
  createTraceRing,
  NO_TRACER,
  sharedMillis,
  TRACE,
  TraceReader,
  Tracer,
} from '#dist/pipeline/trace.js';

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
  return pathToFileURL(join(folder, 'dist/index.js')).href;
}

async function microsPerToken(engine: Engine): Promise<number> {
  const answer = engine.generate(
    { ids: [1, 2, 3, 4, 5, 6, 7, 8] },
    { temperature: 99, topK: 0, topP: 1, minP: 0, seed: 1, maxTokens },
  );
  for await (const _ of answer);
  const { stats } = answer.result;
  return stats.decodeMicros / Math.max(1, stats.answerTokens - 1);
}

const median = (numbers: readonly number[]): number => {
  const sorted = numbers.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
};

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

async function compare(name: string, options: OpenOptions, strippedUrl: string): Promise<void> {
  const stripped = (await import(strippedUrl)) as { open: typeof open };
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
  for (const { engine } of variants) await engine.close();
  console.log(`\n${name}: ${rounds} rounds of up to ${maxTokens} tokens`);
  variants.forEach((variant, index) => {
    const than = index === 0 ? '' : `  against without hooks ${difference(micros[index]!, micros[0]!)}`;
    console.log(
      `${variant.name.padEnd(14)} ${median(micros[index]!).toFixed(1).padStart(9)} us per token${than}`,
    );
  });
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

const folder = mkdtempSync(join(tmpdir(), 'moestream-trace-'));
try {
  hookCost();
  const url = withoutHooks(folder);
  const fixed = {
    model,
    contextLength: 512,
    ...(values.memory === undefined ? {} : { memory: values.memory }),
  };
  if (values.memory !== undefined || positionals.length > 0) await compare('the model', fixed, url);
  else {
    await compare('built-in model, all in memory', { ...fixed, memory: '200M' }, url);
    await compare('built-in model, streaming', { ...fixed, memory: '24M' }, url);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
