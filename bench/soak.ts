/**
 * A thousand engines opened, used, interrupted and closed: what leaks a little leaks a lot here.
 *
 * Prints open files, threads and resident memory as it goes and fails when the last hundred have more than the first
 * settled ones. Takes about ten minutes on two cores. Run: npm run soak
 */
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { type Engine, open } from '#dist/index.js';

const ROUNDS = Number(process.argv[2] ?? 1000);
/** Allocators and the runtime's own threads need some rounds to settle. */
const SETTLED_AFTER = Math.min(50, Math.floor(ROUNDS / 4));
/** Resident memory may drift by this much over the whole soak. */
const DRIFT_BYTES_MAX = 100e6;

const model = fileURLToPath(new URL('../models/tldr-UD_Q3_K_XL.gguf', import.meta.resolve('#dist/index.js')));

interface Usage {
  readonly files: number;
  readonly threads: number;
  readonly residentBytes: number;
}

function usage(): Usage {
  const pages = Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]);
  return {
    files: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    residentBytes: pages * 4096,
  };
}

/** Four ways to end: a whole answer, a loop left early, a close in the middle, nothing at all. */
async function round(number: number): Promise<void> {
  const ioEngine = number % 2 === 0 ? 'uring' : 'threads';
  const engine: Engine = await open({ model, readers: 4, ioEngine, memory: '64M', contextLength: 256 });
  const answer = engine.generate('tar', { temperature: 0, maxTokens: 3 });
  if (number % 4 === 0) for await (const _ of answer);
  else if (number % 4 === 1) for await (const _ of answer) break;
  else if (number % 4 === 2) await answer[Symbol.asyncIterator]().next();
  await engine.close();
}

let settled: Usage | undefined;
for (let number = 0; number < ROUNDS; number++) {
  await round(number);
  if (number === SETTLED_AFTER) settled = usage();
  if (number % 100 !== 99) continue;
  const { files, threads, residentBytes } = usage();
  console.log(
    `${number + 1} rounds: ${files} files, ${threads} threads, ${(residentBytes / 1e6).toFixed(0)} MB`,
  );
}
const last = usage();
const leaks =
  settled !== undefined &&
  (last.files > settled.files ||
    last.threads > settled.threads ||
    last.residentBytes > settled.residentBytes + DRIFT_BYTES_MAX);
console.log(leaks ? `LEAK: ${JSON.stringify(settled)} became ${JSON.stringify(last)}` : 'nothing leaked');
process.exitCode = leaks ? 1 : 0;
