/**
 * moestream beside llama.cpp: the same file, ids, threads and processor, in turns.
 *
 * Each turn is a process of its own that opens the model and runs prompt and answer twice: the first pass finds what the
 * turn was started with, the second what the first has left in memory. The answer's ids are those that moestream chooses;
 * llama.cpp is given them one by one, and how often it would have chosen the same says whether both compute the same
 * model. Medians over the rounds; a machine that does anything else meanwhile makes both numbers small and the ratio
 * worthless, so the load and what others took of the processor meanwhile are printed, and `--wait-seconds 60` waits so
 * long before each turn for a machine that is nine tenths idle.
 *
 *     npm run bench:peer -- --model FILE                          in memory
 *     npm run bench:peer -- --model FILE --cold                   page cache dropped before every turn
 *     npm run bench:peer -- --model FILE --cgroup-memory 3G       larger than memory (Linux, root)
 */
import { statSync } from 'node:fs';
import { availableParallelism, cpus, freemem, loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { median } from '#dist/eval/statistics.js';
import { openModel } from '#dist/model/model.js';
import { formatBytes, parseBytes } from '#dist/pipeline/memory.js';
import { installPeer } from './peer/install.ts';
import { type EngineName, type Job, type Outcome, type Pass, runJob } from './peer/job.ts';
import {
  cachedBytes,
  dropFromPageCache,
  MemoryLimit,
  othersDuring,
  readIntoPageCache,
  waitForIdle,
} from './peer/machine.ts';

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'models/tldr-UD_Q3_K_XL.gguf' },
    'prompt-tokens': { type: 'string', default: '512' },
    tokens: { type: 'string', default: '64' },
    threads: { type: 'string', default: String(availableParallelism()) },
    rounds: { type: 'string', default: '5' },
    memory: { type: 'string' },
    chunk: { type: 'string' },
    cold: { type: 'boolean', default: false },
    'cgroup-memory': { type: 'string' },
    'wait-seconds': { type: 'string', default: '0' },
    'timeout-seconds': { type: 'string', default: '900' },
    json: { type: 'boolean', default: false },
  },
});

function whole(text: string, least: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= least) return value;
  throw new Error(`"${text}" is not a whole number of at least ${least}`);
}

const PASS_NAMES = ['first pass', 'second pass'] as const;
const ENGINES: readonly EngineName[] = ['moestream', 'llama.cpp'];

interface Turn extends Outcome {
  readonly engine: EngineName;
  readonly load: number;
  /** Share of the processor that went to other processes. */
  readonly others: number;
  readonly cachedBefore: number | undefined;
}

const job: Job = {
  model: values.model,
  threads: whole(values.threads, 1),
  prompt: undefined,
  promptTokens: whole(values['prompt-tokens'], 1),
  tokens: whole(values.tokens, 2),
  answer: undefined,
  memory: values.memory,
  chunk: values.chunk === undefined ? undefined : whole(values.chunk, 1),
};
const waitSeconds = whole(values['wait-seconds'], 0);
const rounds = whole(values.rounds, 1);
const timeoutMillis = whole(values['timeout-seconds'], 1) * 1000;
const limitText = values['cgroup-memory'];
const isCold = values.cold || limitText !== undefined;
const paths = openModel(values.model, {}).files.map((file) => file.path);
const modelBytes = paths.reduce((sum, path) => sum + statSync(path).size, 0);

function say(text: string): void {
  if (!values.json) console.log(text);
}

/** One sentence on what every turn starts from. */
function stateSentence(): string {
  if (limitText !== undefined) {
    return `Both run within ${formatBytes(parseBytes(limitText))} of memory, page cache included; the file's pages are dropped before every turn.`;
  }
  if (isCold) return "The file's pages are dropped from the page cache before every turn.";
  return 'The file is in the page cache (read once before every round); moestream reads past it, into its own cache.';
}

function prepare(): void {
  if (!isCold) {
    readIntoPageCache(paths);
  } else if (!dropFromPageCache(paths)) {
    throw new Error('dropping a file from the page cache needs GNU dd, which is not here');
  }
}

async function takeTurns(prefix: readonly string[]): Promise<Turn[]> {
  const found = await runJob('moestream', job, [], timeoutMillis);
  const fixed = { ...job, prompt: found.prompt, answer: found.chosen };
  const turns: Turn[] = [];
  for (let round = 0; round < rounds; round++) {
    for (const engine of ENGINES) {
      prepare();
      await waitForIdle(waitSeconds);
      const before = { load: loadavg()[0]!, cachedBefore: cachedBytes(paths) };
      const { result: answer, others } = await othersDuring(() =>
        runJob(engine, fixed, prefix, timeoutMillis),
      );
      if (engine === 'moestream' && answer.chosen.join() !== found.chosen.join()) {
        throw new Error('moestream has chosen other ids than before for the same prompt');
      }
      turns.push({ engine, ...before, others, ...answer });
      const speeds = answer.passes.map((pass) => `${pass.prefill.toFixed(1)} / ${pass.decode.toFixed(2)}`);
      const line = `round ${round + 1}, ${engine}: ${speeds.join(', then ')} tok/s`;
      process.stderr.write(`${line}; others took ${Math.round(100 * others)} % of the processor\n`);
    }
  }
  return turns;
}

function speedsOf(turns: readonly Turn[], engine: EngineName, pass: number, what: keyof Pass): number[] {
  return turns.filter((turn) => turn.engine === engine).map((turn) => turn.passes[pass]![what]);
}

interface Line {
  readonly pass: string;
  readonly what: keyof Pass;
  readonly moestream: number;
  readonly llama: number;
  readonly ratio: number;
  readonly ranges: readonly string[];
}

function summarise(turns: readonly Turn[]): Line[] {
  return PASS_NAMES.flatMap((name, pass) =>
    (['prefill', 'decode'] as const).map((what) => {
      const speeds = ENGINES.map((engine) => speedsOf(turns, engine, pass, what));
      const [moestream, llama] = speeds.map(median) as [number, number];
      const ranges = speeds.map((each) => `${Math.min(...each).toFixed(1)}-${Math.max(...each).toFixed(1)}`);
      return { pass: name, what, moestream, llama, ratio: moestream / llama, ranges };
    }),
  );
}

/** How many of the answer's ids the peer would have chosen itself. */
function agreement(turns: readonly Turn[]): number {
  const [ours, theirs] = ENGINES.map((engine) => turns.find((turn) => turn.engine === engine)!.chosen);
  return ours!.filter((id, index) => id === theirs![index]).length;
}

function print(turns: readonly Turn[], lines: readonly Line[]): void {
  say(`\n${'tok/s, median (range)'.padEnd(24)}${'moestream'.padEnd(26)}${'llama.cpp'.padEnd(26)}ratio`);
  for (const line of lines) {
    const cells = [line.moestream, line.llama].map((speed, index) =>
      `${speed.toFixed(2)} (${line.ranges[index]})`.padEnd(26),
    );
    say(`${`${line.pass}, ${line.what}`.padEnd(24)}${cells.join('')}${line.ratio.toFixed(2)}`);
  }
  for (const engine of ENGINES) say(`${engine}: ${turns.find((turn) => turn.engine === engine)!.about}`);
  say(`llama.cpp would have chosen ${agreement(turns)} of the ${job.tokens} ids itself.`);
  const loads = turns.map((turn) => turn.load);
  const others = turns.map((turn) => 100 * turn.others);
  say(
    `Load average before the turns: median ${median(loads).toFixed(1)}, at most ${Math.max(...loads).toFixed(1)}; ` +
      `others took ${median(others).toFixed(0)} % of the processor, at most ${Math.max(...others).toFixed(0)} %.`,
  );
}

async function main(): Promise<void> {
  const refusal = limitText === undefined ? undefined : MemoryLimit.refusal();
  if (refusal !== undefined) return say(`Skipped: a memory limit cannot be set here; ${refusal}.`);
  if (!isCold && modelBytes > freemem() + (cachedBytes(paths) ?? 0)) {
    say('The file is larger than free memory: "in the page cache" will not hold; see --cgroup-memory.');
  }
  installPeer();
  say(`${values.model}: ${formatBytes(modelBytes)}; ${cpus()[0]?.model ?? 'processor unknown'}`);
  say(
    `${job.promptTokens} prompt and ${job.tokens} answer tokens, ${job.threads} threads, ${rounds} rounds.`,
  );
  say(stateSentence());
  const limit = limitText === undefined ? undefined : new MemoryLimit(parseBytes(limitText));
  try {
    const turns = await takeTurns(limit?.prefix() ?? []);
    const lines = summarise(turns);
    print(turns, lines);
    if (values.json) {
      console.log(
        JSON.stringify({
          job,
          modelBytes,
          state: stateSentence(),
          lines,
          agreement: agreement(turns),
          turns,
        }),
      );
    }
  } finally {
    limit?.remove();
  }
}

try {
  await main();
} catch (error) {
  process.stderr.write(`bench:peer: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
