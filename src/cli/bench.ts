/** `moestream bench`: speed, in llama-bench's conventions, with what a disk adds to them. */
import { type Command, Option } from 'commander';
import { MoestreamError } from '../errors.ts';
import { type BenchRow, type BenchTest, bench as measure } from '../eval/bench.ts';
import type { MachineLook } from '../eval/machine.ts';
import type { TokenSource } from '../eval/token-source.ts';
import { expandList } from '../eval/value-lists.ts';
import { integer } from './arguments.ts';
import { BENCH_FORMATS, type BenchFormat, csvHead, csvLine, markdown } from './bench-report.ts';
import type { Interruption } from './interrupt.ts';
import { print } from './output.ts';
import { addSettingLists, type SettingListFlags, settingsOf } from './setting-lists.ts';
import { lookFirst, type SourceFlags, sourceOf } from './text-and-machine.ts';
import { tokenMeter } from './token-progress.ts';

interface BenchFlags extends SourceFlags, SettingListFlags {
  readonly nPrompt?: readonly number[];
  readonly nGen?: readonly number[];
  readonly promptGen?: readonly (readonly [number, number])[];
  readonly nDepth?: readonly number[];
  readonly repetitions: number;
  readonly output: BenchFormat;
  readonly cold?: boolean;
  readonly warmup: boolean;
  readonly sustained?: number;
}

const DEFAULT_PROMPT = 512;
const DEFAULT_ANSWER = 128;

const counts = (text: string): readonly number[] => expandList(text).map(integer);

function pair(
  text: string,
  before: readonly (readonly [number, number])[] = [],
): readonly (readonly [number, number])[] {
  const [prompt, answer, ...rest] = text.split(',').map(integer);
  if (prompt === undefined || answer === undefined || rest.length > 0) {
    throw new MoestreamError('USAGE', `-pg ${text}: expected a prompt and an answer, such as 512,128`);
  }
  return [...before, [prompt, answer]];
}

/** llama-bench writes `-pg`; option parsers here know one letter behind one dash. */
export function withLlamaBenchSpelling(args: readonly string[]): string[] {
  if (args[2] !== 'bench') return [...args];
  return args.map((word) => (word === '-pg' ? '--prompt-gen' : word));
}

export function addBench(program: Command, interruption: () => Interruption): void {
  const command = program
    .command('bench')
    .description('measure speed, with every combination of the values that are given')
    .argument('<models...>', 'GGUF files, any part of a split set, or packed folders')
    .option('-p, --n-prompt <list>', `prompt tokens (default ${DEFAULT_PROMPT})`, counts)
    .option('-n, --n-gen <list>', `answer tokens (default ${DEFAULT_ANSWER})`, counts)
    .option(
      '--prompt-gen <p,n>',
      'a prompt and its answer as one test; -pg for short, may be given several times',
      pair,
    )
    .option('-d, --n-depth <list>', 'tokens of context before the clock starts (default 0)', counts)
    .option('-r, --repetitions <n>', 'runs of each test', integer, 5)
    .addOption(
      new Option('-o, --output <format>', 'how rows are printed').choices(BENCH_FORMATS).default('md'),
    )
    .option('--cold', 'every run with an empty expert cache, and past or without the page cache')
    .option('--no-warmup', 'no untimed run of the same tokens before')
    .option('--sustained <n>', 'one long answer instead, and its speed over time', integer)
    .option('-f, --file <path>', 'take the tokens from this text (default: one that comes with moestream)')
    .option('--ids <path>', 'take these token ids');
  addSettingLists(command).action((models: readonly string[], flags: BenchFlags) =>
    bench(models, flags, interruption()),
  );
}

function testsOf(flags: BenchFlags): BenchTest[] {
  const { nPrompt, nGen, promptGen = [], nDepth = [0], sustained } = flags;
  const alone = promptGen.length > 0 && nPrompt === undefined && nGen === undefined;
  const prompts = nPrompt ?? (alone ? [] : [DEFAULT_PROMPT]);
  const answers = nGen ?? (alone ? [] : [DEFAULT_ANSWER]);
  const shapes: readonly (readonly [number, number])[] =
    sustained === undefined
      ? [
          ...prompts.map((count) => [count, 0] as const),
          ...answers.map((count) => [0, count] as const),
          ...promptGen,
        ]
      : [[0, sustained]];
  const tests = nDepth.flatMap((depthTokens) =>
    shapes
      .filter(([prompt, answer]) => prompt > 0 || answer > 0)
      .map(([promptTokens, decodeTokens]) => ({
        promptTokens,
        decodeTokens,
        depthTokens,
        ...(sustained === undefined ? {} : { sustained: true }),
      })),
  );
  for (const { promptTokens, decodeTokens, depthTokens } of tests) {
    if (Math.min(promptTokens, decodeTokens, depthTokens) < 0)
      throw new MoestreamError('USAGE', 'a test has a negative number of tokens');
  }
  if (tests.length > 0) return tests;
  throw new MoestreamError('USAGE', 'nothing to measure', { hint: 'Give -p, -n or -pg something above 0.' });
}

/** Prints rows in a format: some as they come, some at the end. */
class RowPrinter {
  readonly rows: BenchRow[] = [];
  private readonly format: BenchFormat;
  private readonly machine: Pick<MachineLook, 'processor' | 'cores' | 'busy'>;

  constructor(format: BenchFormat, { processor, cores, busy }: MachineLook) {
    this.format = format;
    this.machine = { processor, cores, busy };
  }

  async add(row: BenchRow): Promise<void> {
    if (this.format === 'csv') await print(`${this.rows.length === 0 ? csvHead() : ''}${csvLine(row)}`);
    if (this.format === 'jsonl') await print(`${JSON.stringify({ ...row, machine: this.machine })}\n`);
    this.rows.push(row);
  }

  async end(): Promise<void> {
    if (this.rows.length === 0) return;
    const columns = process.stdout.isTTY ? process.stdout.columns : undefined;
    if (this.format === 'md') await print(markdown(this.rows, columns));
    if (this.format === 'json') {
      const rows = this.rows.map((row) => ({ ...row, machine: this.machine }));
      await print(`${JSON.stringify(rows, undefined, 1)}\n`);
    }
  }
}

async function bench(
  models: readonly string[],
  flags: BenchFlags,
  interruption: Interruption,
): Promise<void> {
  const { repetitions, cold, warmup } = flags;
  if (repetitions < 1) throw new MoestreamError('USAGE', `-r ${repetitions}: expected at least 1`);
  const tests = testsOf(flags);
  const settings = settingsOf(models, flags);
  const source: TokenSource | undefined = sourceOf(flags);
  const meter = tokenMeter(flags.quiet === true);
  const reread = cold !== true && settings.some(({ options }) => options.io === 'buffered');
  const look = await lookFirst(models, reread, meter.onNotice);
  const printer = new RowPrinter(flags.output, look);
  const total = settings.length * tests.reduce((sum, test) => sum + (test.sustained ? 1 : repetitions), 0);
  let done = 0;
  let said: string | undefined;
  try {
    for (const setting of settings) {
      await measure(
        {
          setting,
          tests,
          repetitions,
          cache: cold === true ? 'cold' : warmup ? 'warm' : 'as-is',
          ...(source === undefined ? {} : { source }),
        },
        {
          signal: interruption.signal,
          notice: meter.onNotice,
          onRun: (test) => meter.onProgress(done++, total, test),
          onRow: async (row) => {
            if (row.cache.sentence !== said) meter.onNotice(`caches: ${row.cache.sentence}`);
            said = row.cache.sentence;
            meter.clear();
            await printer.add(row);
          },
        },
      );
    }
  } finally {
    // What was measured before an error or Ctrl-C is not lost.
    meter.clear();
    await printer.end();
  }
  warnOfDisturbance(printer.rows, meter.onNotice);
}

const DISTURBING_SHARE = 0.1;

/** What a look before could not see. */
function warnOfDisturbance(rows: readonly BenchRow[], notice: (sentence: string) => void): void {
  const disturbed = rows.filter((row) => row.othersShare > DISTURBING_SHARE);
  const tests = [...new Set(disturbed.map((row) => row.test))].join(', ');
  const worst = Math.max(0, ...disturbed.map((row) => row.othersShare));
  if (tests !== '') {
    notice(
      `others took up to ${Math.round(100 * worst)} % of the processor during ${tests}: measure again on a quiet machine`,
    );
  }
  const throttled = rows.reduce((sum, row) => sum + row.throttledMillis, 0);
  if (throttled > 0) notice(`a CPU limit held the runs back for ${Math.round(throttled)} ms`);
}
