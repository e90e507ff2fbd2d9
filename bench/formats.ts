/**
 * What a model's format costs and gains: perplexity, expert bytes per token and speed of each of several files.
 *
 * Perplexity is over 2,047 tokens of documentation in one context (test/fixtures/golden/tldr.json, ids of the tldr model's
 * vocabulary), in both precisions; speed is the median of three answers of 128 tokens with every expert in memory, the
 * models interleaved. Run: npm run bench:formats -- MODEL... ; `MODEL+EXPERTS` takes the experts from another one.
 */
import { readFileSync } from 'node:fs';
import { type Engine, type OpenOptions, open } from '#dist/index.js';
import { bytesOf } from '#dist/model/places.js';

const models = process.argv.slice(2);
if (models.length === 0) throw new Error('name the models');

const golden = new URL('../../test/fixtures/golden/tldr.json', import.meta.url);
const { ids } = (JSON.parse(readFileSync(golden, 'utf8')) as { val: { ids: number[] } }).val;
const ROUNDS = 3;
const ANSWER_TOKENS = 128;
const PROMPT = 'How do I use git rebase?';

function optionsOf(name: string): OpenOptions {
  const [model, experts] = name.split('+') as [string, string?];
  return { model, contextLength: ids.length, ...(experts === undefined ? {} : { experts }) };
}

/** -log of the probability of `token`. */
function lossOf(logits: Float32Array, token: number): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (const logit of logits) largest = Math.max(largest, logit);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - largest);
  return Math.log(sum) + largest - logits[token]!;
}

async function perplexityOf(engine: Engine): Promise<number> {
  let sum = 0;
  await engine.logits(ids.slice(0, -1), (row, position) => {
    sum += lossOf(row, ids[position + 1]!);
  });
  return Math.exp(sum / (ids.length - 1));
}

async function withEngine<T>(options: OpenOptions, work: (engine: Engine) => Promise<T>): Promise<T> {
  const engine = await open(options);
  try {
    return await work(engine);
  } finally {
    await engine.close();
  }
}

function expertBytesPerToken({ model }: Engine): number {
  const perLayer = model.tensors.experts.map(
    ({ gate, up, down }) => bytesOf(gate) + bytesOf(up) + bytesOf(down),
  );
  return perLayer.reduce((sum, bytes) => sum + bytes, 0) * model.hyperparameters.expertsPerToken;
}

async function speedOf(engine: Engine): Promise<number> {
  const answer = engine.generate(PROMPT, { temperature: 0, maxTokens: ANSWER_TOKENS });
  for await (const _ of answer);
  return answer.result.stats.decodeTokensPerSecond;
}

const rows = new Map(models.map((name) => [name, { exact: 0, fast: 0, bytes: 0, speeds: [] as number[] }]));
for (const [name, row] of rows) {
  row.exact = await withEngine({ ...optionsOf(name), precision: 'exact' }, perplexityOf);
  row.fast = await withEngine(optionsOf(name), async (engine) => {
    row.bytes = expertBytesPerToken(engine);
    return perplexityOf(engine);
  });
}
for (let round = 0; round < ROUNDS; round++) {
  for (const [name, row] of rows) {
    const speed = await withEngine(optionsOf(name), async (engine) => {
      // The first answer brings the experts in.
      await speedOf(engine);
      return speedOf(engine);
    });
    row.speeds.push(speed);
  }
}
const width = Math.max(...models.map((name) => name.length));
console.log(`${'model'.padEnd(width)}  PPL exact  PPL fast  expert bytes/token  decode tok/s`);
for (const [name, { exact, fast, bytes, speeds }] of rows) {
  const speed = speeds.toSorted((a, b) => a - b)[speeds.length >> 1]!;
  console.log(
    `${name.padEnd(width)}  ${exact.toFixed(3).padStart(9)}  ${fast.toFixed(3).padStart(8)}  ${String(bytes).padStart(18)}  ${speed.toFixed(1).padStart(12)}`,
  );
}
