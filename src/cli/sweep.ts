/** `moestream sweep`: every value of a setting, or of a grid of settings, measured side by side. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { OpenOptions } from '../engine/options.ts';
import { MoestreamError } from '../errors.ts';
import type { MachineLook } from '../eval/machine.ts';
import { applyProfile } from '../eval/profile/apply.ts';
import { flagOf, type SettingName, type SettingValue } from '../eval/settings.ts';
import { bestRow, type Grid, runSweep, type SweepResult, type SweepRow } from '../eval/sweep.ts';
import { sweepPage } from '../eval/sweep-page.ts';
import { LocalRunner } from '../eval/tasks/local-runner.ts';
import { expandList } from '../eval/value-lists.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { renderPage } from '../report/page.ts';
import { writeReport } from '../report/write.ts';
import { integer } from './arguments.ts';
import { environmentNameOf, SETTING_FLAGS, type SettingFlag } from './engine-options.ts';
import type { Interruption } from './interrupt.ts';
import { intervalChart, shortNumber } from './interval-chart.ts';
import { print, say, table } from './output.ts';
import {
  addRunFlags,
  lookBefore,
  outputColumns,
  type RunFlags,
  runRequestOf,
  statusLine,
  timeLeft,
} from './run-flags.ts';

interface SweepFlags extends RunFlags {
  readonly rounds: number;
  readonly profile: boolean;
  readonly mlock?: boolean;
  readonly html?: string;
  readonly json?: boolean;
  /** One list per setting that was given, by its flag's name. */
  readonly [setting: string]: unknown;
}

const ROUNDS_MAX = 1000;

export function addSweep(program: Command, interruption: () => Interruption): void {
  const command = program
    .command('sweep')
    .description('measure every value of a setting, or of a grid: lists 1,2,4, ranges 1-8, 1-8+2, 1-8*2')
    .argument('<model>', 'GGUF file, any part of a split set, or packed folder');
  for (const flag of SETTING_FLAGS) command.addOption(listOption(flag));
  addRunFlags(command, 'decode')
    .option('--rounds <n>', 'runs of each point; odd numbers are made even', integer, 6)
    .option('--mlock', 'keep weights and cache from being swapped out')
    .option('--no-profile', 'leave out what `moestream tune` has found for this machine and model')
    .option('--html <file>', 'write a report for the browser')
    .option('--json', 'as JSON')
    .option('-q, --quiet', 'nothing on stderr but errors')
    .action((model: string, flags: SweepFlags) => sweep(model, flags, interruption()));
}

function listOption({ flags, description, parse }: SettingFlag): Option {
  const isPredict = flags.startsWith('--predict ');
  return new Option(flags.replace(/<.*>/, '<list>'), description)
    .env(environmentNameOf(flags))
    .argParser((text: string) => {
      try {
        // A list of lists: names that belong together are joined by a plus.
        return expandList(text).map((each) => parse(isPredict ? each.replaceAll('+', ',') : each));
      } catch (error) {
        if (MoestreamError.is(error)) throw new InvalidArgumentError(error.message);
        throw error;
      }
    });
}

/** The lists that were given, by setting: those of one value are fixed, the others are the grid. */
function listsOf(flags: SweepFlags): Grid {
  return SETTING_FLAGS.flatMap((setting) => {
    const attribute = new Option(setting.flags).attributeName();
    const values = flags[attribute] as readonly SettingValue[] | undefined;
    const name = (attribute === 'context' ? 'contextLength' : attribute) as SettingName;
    return values === undefined ? [] : [[name, values] as const];
  });
}

async function sweep(model: string, flags: SweepFlags, interruption: Interruption): Promise<void> {
  if (flags.rounds < 1 || flags.rounds > ROUNDS_MAX) {
    throw new MoestreamError('USAGE', `--rounds ${flags.rounds}: expected 1 to ${ROUNDS_MAX}`);
  }
  const lists = listsOf(flags);
  const grid = lists.filter(([, values]) => values.length > 1);
  if (grid.length === 0) {
    throw new MoestreamError('USAGE', 'nothing varies', {
      hint: 'Give at least one setting a list, such as --split 1,2,4.',
    });
  }
  const given: OpenOptions = {
    model,
    ...Object.fromEntries(lists.map(([name, values]) => [name, values[0]])),
    ...(flags.mlock === true ? { mlock: true } : {}),
    ...(flags.quiet === true ? {} : { onNotice: (sentence: string) => say(`moestream: ${sentence}`) }),
  };
  const request = runRequestOf(flags.profile ? applyProfile(given).options : given, flags);
  const machine = await lookBefore(request, flags.quiet);
  const runner = new LocalRunner();
  const status = statusLine(flags.quiet);
  const began = performance.now();
  let result: SweepResult;
  try {
    result = await runSweep(
      runner,
      { run: request, grid, rounds: flags.rounds, score: flags.score, timeoutSeconds: flags.runTimeout },
      {
        signal: interruption.signal,
        onRun: (done, total, point) =>
          status.show(`run ${done + 1} of ${total}  ${timeLeft(began, done, total)}  ${labelOf(point)}`),
      },
    );
  } finally {
    status.clear();
    await runner.close();
  }
  await report(result, grid, machine, model, flags);
  if (result.interrupted) throw new MoestreamError('ABORTED', 'the sweep was interrupted');
}

async function report(
  result: SweepResult,
  grid: Grid,
  machine: MachineLook,
  model: string,
  flags: SweepFlags,
): Promise<void> {
  if (flags.html !== undefined) {
    writeReport(flags.html, [renderPage(sweepPage(result, grid, machine, model))]);
  }
  if (flags.json === true) {
    return print(`${JSON.stringify({ model, machine, ...result }, undefined, 1)}\n`);
  }
  if (flags.quiet !== true) for (const notice of result.notices) say(`moestream: ${notice}`);
  await print(sweepText(result, grid, outputColumns()));
  if (flags.html !== undefined && flags.quiet !== true) say(`moestream: report in ${flags.html}`);
}

/** `split 4 window 2` */
function labelOf(point: SweepRow['settings']): string {
  return Object.entries(point)
    .map(([name, value]) => `${flagOf(name as SettingName).slice(2)} ${valueText(value)}`)
    .join(' ');
}

const valueText = (value: SettingValue): string =>
  typeof value === 'number' && value >= 1e6 ? formatBytes(value) : String(value);

interface ColumnText {
  readonly head: string;
  readonly cell: (row: SweepRow) => string;
}

function columnsOf(grid: Grid): { readonly fixed: ColumnText[]; readonly more: ColumnText[] } {
  const number = (value: number | undefined): string => (value === undefined ? '-' : shortNumber(value));
  const share = (value: number | undefined): string =>
    value === undefined ? '-' : `${Math.round(100 * value)}%`;
  const fixed: ColumnText[] = [
    ...grid.map(([name]) => ({
      head: flagOf(name).slice(2),
      cell: (row: SweepRow) => valueText(row.settings[name]!),
    })),
    { head: 'tok/s', cell: (row) => number(row.score?.median) },
    {
      head: '95 % interval',
      cell: ({ score }) => (score === undefined ? '-' : `${number(score.low)}-${number(score.high)}`),
    },
  ];
  const more: ColumnText[] = [
    {
      head: 'by first',
      cell: ({ toFirst }) => (toFirst === undefined ? '' : `${toFirst.ratio.toFixed(3)}x`),
    },
    { head: 'p99 ms', cell: (row) => number(row.tokenMillisP99) },
    {
      head: 'MB/tok',
      cell: ({ bytesReadPerToken: bytes }) => number(bytes === undefined ? undefined : bytes / 1e6),
    },
    { head: 'hit', cell: (row) => share(row.hitRate) },
    { head: 'stall', cell: (row) => share(row.stallShare) },
  ];
  return { fixed, more };
}

/** As many columns as fit; those to the right go first. */
export function sweepText(result: SweepResult, grid: Grid, columns: number): string {
  const { fixed, more } = columnsOf(grid);
  let shown = [...fixed, ...more];
  let text = '';
  for (; ; shown = shown.slice(0, -1)) {
    const rows = [
      shown.map(({ head }) => head),
      ...result.rows.map((row) => shown.map(({ cell }) => cell(row))),
    ];
    const widths = shown.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
    text = table(rows.map((row) => row.map((cell, column) => cell.padStart(widths[column]!))));
    const widest = Math.max(...text.split('\n').map((line) => line.length));
    if (widest <= columns || shown.length === fixed.length) break;
  }
  const chart = intervalChart(
    result.rows.map((row) => ({ label: labelOf(row.settings), interval: row.score })),
    columns,
    'tok/s',
  );
  const failures = result.rows.flatMap(({ settings, failure }) =>
    failure === undefined ? [] : [`${labelOf(settings)} failed: ${failure.message} (${failure.code})`],
  );
  return [text, chart, ...verdictLines(result), ...failures, '']
    .filter((part, index) => part !== '' || index > 1)
    .join('\n');
}

function verdictLines(result: SweepResult): string[] {
  const { rows, interrupted, runsDone, runsPlanned, rounds, score } = result;
  const head = `${score}, medians of ${interrupted ? 'up to ' : ''}${rounds} runs each, interleaved, every second round backwards`;
  const cut = interrupted ? [`interrupted after ${runsDone} of ${runsPlanned} runs`] : [];
  const best = bestRow(rows);
  if (best === undefined) return [head, ...cut];
  const { row, sure } = best;
  if (row === rows[0]) return [head, ...cut, `fastest: ${labelOf(row.settings)}, the first`];
  const { ratio, low, high } = row.toFirst ?? { ratio: 1, low: 0, high: Number.POSITIVE_INFINITY };
  const times = `${ratio.toFixed(3)} times the first (${low.toFixed(3)} to ${high.toFixed(3)})`;
  return [head, ...cut, `fastest: ${labelOf(row.settings)}, ${times}${sure ? '' : ': not told from it'}`];
}
