/** What a child process is asked to measure, what it answers, and how it is run. */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

/** One engine, one model, one prompt and answer. */
export interface Job {
  readonly model: string;
  readonly threads: number;
  /** Undefined in the first job, which looks for a prompt whose answer is long enough. */
  readonly prompt: readonly number[] | undefined;
  readonly promptTokens: number;
  readonly tokens: number;
  /** The ids that both engines are to decode: those that moestream chooses. */
  readonly answer: readonly number[] | undefined;
  /** For moestream alone. */
  readonly memory: string | undefined;
  readonly chunk: number | undefined;
}

/** Tokens per second; decoding is counted from the first answer token to the last. */
export interface Pass {
  readonly prefill: number;
  readonly decode: number;
}

export interface Answer {
  readonly passes: readonly Pass[];
  readonly prompt: readonly number[];
  /** What the engine itself chose after the prompt and after each id of the answer. */
  readonly chosen: readonly number[];
  /** One line on what was measured. */
  readonly about: string;
}

/** What reaches the parent. */
export interface Outcome extends Answer {
  /** Processor time of the child, all threads. */
  readonly cpuMillis: number;
}

/** The second finds everything as the first left it: caches filled, pages mapped. */
export const PASSES = 2;

export function contextOf(job: Job): number {
  return job.promptTokens + job.tokens + 16;
}

/** The speeds of an answer whose tokens came at these times. */
export function passOf(job: Job, beganMillis: number, arrivedMillis: readonly number[]): Pass {
  const first = arrivedMillis[0]!;
  const last = arrivedMillis.at(-1)!;
  return {
    prefill: (job.promptTokens * 1000) / (first - beganMillis),
    decode: ((arrivedMillis.length - 1) * 1000) / (last - first),
  };
}

/** For the children: the job in the first argument, the answer as the last line of standard output. */
export async function serve(measure: (job: Job) => Promise<Answer>): Promise<never> {
  const answer = await measure(JSON.parse(process.argv[2]!) as Job);
  const { user, system } = process.cpuUsage();
  const outcome: Outcome = { ...answer, cpuMillis: (user + system) / 1000 };
  await new Promise<void>((resolve) =>
    process.stdout.write(`\n${JSON.stringify(outcome)}\n`, () => resolve()),
  );
  process.exit(0);
}

export type EngineName = 'moestream' | 'llama.cpp';

const PROGRAMS: Readonly<Record<EngineName, string>> = { moestream: 'moestream.js', 'llama.cpp': 'llama.js' };

/** Runs a job in a process of its own, behind `prefix` (a command that runs a command). */
export function runJob(
  engine: EngineName,
  job: Job,
  prefix: readonly string[],
  timeoutMillis: number,
): Promise<Outcome> {
  const program = fileURLToPath(new URL(PROGRAMS[engine], import.meta.url));
  const [command, ...args] = [...prefix, process.execPath, program, JSON.stringify(job)];
  return new Promise((resolve, reject) => {
    const child = spawn(command!, args, { stdio: ['ignore', 'pipe', 'inherit'], timeout: timeoutMillis });
    let out = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
    });
    child.on('error', reject);
    child.on('close', (code, signal) => {
      const last = out.trimEnd().split('\n').at(-1);
      if (code === 0 && last) resolve(JSON.parse(last) as Outcome);
      else if (child.killed) reject(new Error(`${engine} did not end within ${timeoutMillis / 1000} s`));
      else reject(new Error(`${engine} ended with ${signal ?? code}`));
    });
  });
}
