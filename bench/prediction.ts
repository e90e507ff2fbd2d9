/**
 * What prediction does to decoding: tok/s with each predictor, the stall, and how near a run comes to its bound.
 *
 * A model larger than its budget (by default a quarter of its experts fit), interleaved rounds, each engine twice: cold,
 * with an empty slab, and warm. The bound is the larger of computing and reading, per layer, from measured parts: computing
 * is the time of the run in which compute did not wait, reading is what the router asked for at the speed that diskbench
 * measured (or --disk-speed). Layers differ, and the mean of a maximum is larger than the maximum of means, so the true
 * bound is a little lower than the one printed.
 *
 *     npm run make-model -- --preset 397b --layers 6 -o /tmp/397b-6.gguf
 *     npm run bench:prediction -- /tmp/397b-6.gguf [--tokens 32] [--rounds 3] [--share 0.25] [--disk-speed 2.2]
 *         [--predict none --predict auto]
 */
import { parseArgs } from 'node:util';
import { deviceOf } from '#dist/disk/device.js';
import { bestPoint, storedMeasurement } from '#dist/disk/store.js';
import { settingsOf } from '#dist/engine/options.js';
import { planOf } from '#dist/engine/planning.js';
import { median } from '#dist/eval/statistics.js';
import { type Engine, type GenerationResult, open } from '#dist/index.js';
import { openModel } from '#dist/model/model.js';
import { POLICY_DEFAULT, type Policy } from '#dist/pipeline/eviction.js';
import { formatBytes } from '#dist/pipeline/memory.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '3' },
    share: { type: 'string', default: '0.25' },
    'disk-speed': { type: 'string' },
    policy: { type: 'string', default: POLICY_DEFAULT },
    predict: { type: 'string', multiple: true },
  },
});
const [path] = positionals;
if (path === undefined) throw new Error('name a model');
const ROUNDS = Number(values.rounds);
const TOKENS = Number(values.tokens);
const PREDICTORS = values.predict ?? [
  'none',
  'temporal',
  'frequency',
  'markov',
  'lookahead',
  'lookahead,markov',
  'auto',
  'auto,lookahead,markov',
];
const CONTEXT = 512;
/** One prompt token, so that the answer is all there is to measure; chunk 1 leaves the memory to the experts. */
const OPTIONS = { model: path, contextLength: CONTEXT, chunk: 1, io: 'direct' } as const;

function budgetBytes(): number {
  const { plan } = planOf(openModel(path!), settingsOf({ ...OPTIONS, memory: '1T' }));
  const fixedBytes = plan.denseBytes + plan.kvBytes + plan.stateBytes + plan.scratchBytes + plan.logitsBytes;
  return fixedBytes + Math.ceil(plan.allExpertsBytes * Number(values.share));
}

function diskBytesPerSecond(): number {
  if (values['disk-speed'] !== undefined) return Number(values['disk-speed']) * 1e9;
  const stored = storedMeasurement(deviceOf(path!), (sentence) => console.error(sentence));
  const best = stored && bestPoint(stored.points);
  if (best === undefined)
    throw new Error('the disk is not measured: run `moestream diskbench MODEL`, or give --disk-speed');
  return best.bytesPerSecond;
}

interface Figures {
  readonly tokensPerSecond: number;
  readonly stallShare: number;
  readonly hitShare: number;
  readonly lateShare: number;
  readonly usefulShare: number;
  readonly limit: number;
  readonly computeMicros: number;
  readonly readMicros: number;
  /** tok/s of this run by those of its bound. */
  readonly ofBound: number;
}

function figuresOf({ stats }: GenerationResult, layers: number, bytesPerSecond: number): Figures {
  const { experts, controller, decodeMicros, promptMicros } = stats;
  const micros = promptMicros + decodeMicros;
  // Every row but the last sampled one went through all layers.
  const rows = stats.promptTokens + stats.answerTokens - 1;
  const steps = rows * layers;
  const computeMicros = (micros - experts.waitMicros) / steps;
  const neededBytes = experts.demandBytesRead + experts.usefulPrefetchBytes;
  const readMicros = ((neededBytes / bytesPerSecond) * 1e6) / steps;
  const prefetchedBytes =
    experts.usefulPrefetchBytes + experts.latePrefetchBytes + experts.wastedPrefetchBytes;
  return {
    tokensPerSecond: (rows * 1e6) / micros,
    stallShare: experts.waitMicros / micros,
    hitShare: experts.hits / experts.lookups,
    lateShare: experts.lateHits / experts.lookups,
    usefulShare: prefetchedBytes === 0 ? 0 : experts.usefulPrefetchBytes / prefetchedBytes,
    limit: controller.limit,
    computeMicros,
    readMicros,
    ofBound: Math.max(computeMicros, readMicros) / (micros / steps),
  };
}

async function generate(engine: Engine, seed: number): Promise<GenerationResult> {
  const options = { temperature: 1, topK: 0, topP: 1, minP: 0, seed, maxTokens: TOKENS };
  const answer = engine.generate({ ids: [seed % 256] }, options);
  for await (const _ of answer);
  return answer.result;
}

const memory = budgetBytes();
const bytesPerSecond = diskBytesPerSecond();
const found = new Map(PREDICTORS.map((name) => [name, { cold: [] as Figures[], warm: [] as Figures[] }]));
const cachePolicy = values.policy as Policy;
for (let round = 0; round < ROUNDS; round++) {
  // The other way round every second time, so that no predictor always comes after the same one.
  for (const predict of round % 2 === 0 ? PREDICTORS : PREDICTORS.toReversed()) {
    const engine = await open({ ...OPTIONS, memory, predict, cachePolicy });
    try {
      const { layers } = engine.model.hyperparameters;
      for (const state of ['cold', 'warm'] as const) {
        const seed = 2 * round + (state === 'warm' ? 1 : 0);
        found.get(predict)![state].push(figuresOf(await generate(engine, seed), layers, bytesPerSecond));
      }
    } finally {
      await engine.close();
    }
  }
}

const disk = `${(bytesPerSecond / 1e9).toFixed(2)} GB/s`;
console.log(
  `${formatBytes(memory)}, disk ${disk}, ${TOKENS} tokens, medians of ${ROUNDS} rounds, policy ${cachePolicy}`,
);
for (const state of ['cold', 'warm'] as const) {
  const head =
    'predictor               tok/s  stalled  hits  late  useful  limit  compute us  read us  of bound';
  console.log(`\n${state.padEnd(4)}\n${head}`);
  for (const [name, figures] of found) {
    const of = (key: keyof Figures): number => median(figures[state].map((each) => each[key]));
    const share = (key: keyof Figures): string => `${(100 * of(key)).toFixed(0)} %`;
    console.log(
      [
        name.padEnd(22),
        of('tokensPerSecond').toFixed(2).padStart(6),
        share('stallShare').padStart(7),
        share('hitShare').padStart(5),
        share('lateShare').padStart(5),
        share('usefulShare').padStart(6),
        String(of('limit')).padStart(6),
        of('computeMicros').toFixed(0).padStart(11),
        of('readMicros').toFixed(0).padStart(8),
        of('ofBound').toFixed(2).padStart(9),
      ].join(' '),
    );
  }
}
