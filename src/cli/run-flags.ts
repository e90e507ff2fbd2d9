/** What the commands share that measure through the local runner: the options of a run, and a line of progress. */
import { type Command, Option } from 'commander';
import type { OpenOptions } from '../engine/options.ts';
import { MoestreamError } from '../errors.ts';
import type { MachineLook } from '../eval/machine.ts';
import { CACHE_MODES, type CacheMode, type RunRequest } from '../eval/measure-run.ts';
import { SCORES, type Score } from '../eval/score.ts';
import { settingsIn } from '../eval/settings.ts';
import { openModel } from '../model/model.ts';
import { defaultBudgetBytes } from '../pipeline/budget.ts';
import { integer } from './arguments.ts';
import { say } from './output.ts';
import { duration } from './progress.ts';
import { lookFirst, type SourceFlags, sourceOf } from './text-and-machine.ts';

export interface RunFlags extends SourceFlags {
  readonly promptTokens: number;
  readonly decodeTokens: number;
  readonly cache: CacheMode;
  readonly score: Score;
  readonly runTimeout: number;
  readonly quiet?: boolean;
}

export function addRunFlags(command: Command, defaultScore: Score): Command {
  return command
    .option('-p, --prompt-tokens <n>', 'tokens of prompt in each run', integer, 64)
    .option('-n, --decode-tokens <n>', 'tokens of answer in each run, replayed', integer, 64)
    .option('-f, --file <path>', 'a text to take the tokens from (default: the text that comes along)')
    .option('--ids <path>', 'a file of token ids to take instead of a text')
    .addOption(
      new Option('--cache <state>', 'what the caches hold when the clock starts')
        .choices(CACHE_MODES)
        .default('warm'),
    )
    .addOption(new Option('--score <part>', 'what counts, in tok/s').choices(SCORES).default(defaultScore))
    .option('--run-timeout <seconds>', 'a run that takes longer has failed', integer, 600);
}

/**
 * Opens the model once, so that a wrong name ends the command before the first run. The budget is fixed here too: what is
 * free changes from run to run, and with it the cache.
 */
export function runRequestOf(options: OpenOptions, flags: RunFlags): RunRequest {
  const { score, promptTokens, decodeTokens } = flags;
  if ((score !== 'decode' && promptTokens < 1) || (score !== 'prefill' && decodeTokens < 1)) {
    throw new MoestreamError('USAGE', `the score ${score} needs tokens that are not there`, {
      hint: 'Give -p and -n what the score counts, or choose another --score.',
    });
  }
  openModel(options.model);
  const source = sourceOf(flags);
  return {
    options: {
      ...settingsIn(options),
      model: options.model,
      memory: options.memory ?? defaultBudgetBytes(),
    },
    promptTokens: flags.promptTokens,
    decodeTokens: flags.decodeTokens,
    cache: flags.cache,
    ...(source === undefined ? {} : { source }),
  };
}

/** Looks at the machine before a series of runs, and says so when it is busy. */
export function lookBefore({ options }: RunRequest, quiet: boolean | undefined): Promise<MachineLook> {
  return lookFirst([options.model], options.io === 'buffered', (sentence) => {
    if (quiet !== true) say(`moestream: ${sentence}`);
  });
}

/** One line on a terminal that is written over again; nothing elsewhere. */
export interface StatusLine {
  show(text: string): void;
  clear(): void;
}

const COLUMNS_MAX = 59;

export function statusLine(quiet: boolean | undefined): StatusLine {
  const shown = process.stderr.isTTY === true && quiet !== true;
  return {
    show: (text) => {
      if (shown) process.stderr.write(`\r${text.slice(0, COLUMNS_MAX)}\x1b[K`);
    },
    clear: () => {
      if (shown) process.stderr.write('\r\x1b[K');
    },
  };
}

/** `0:43 left`, from how long the part that is done has taken. Empty before anything is known. */
export function timeLeft(beganMillis: number, done: number, total: number): string {
  if (done === 0) return '';
  const seconds = ((performance.now() - beganMillis) / 1000 / done) * (total - done);
  return `${duration(seconds)} left`;
}

/** Where tables are squeezed to. */
export function outputColumns(): number {
  return Math.max(60, Math.min(120, process.stdout.columns ?? 80));
}
