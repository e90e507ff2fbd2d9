/** `moestream research`: works through a plan of experiments, and shows what came of them. */
import { basename, dirname, extname, join, resolve } from 'node:path';
import type { Command } from 'commander';
import { MoestreamError } from '../errors.ts';
import { jsonlPath, type LogContent, ResearchLog, readLog } from '../eval/research/log.ts';
import { lastKept, researchPage, totalGain } from '../eval/research/page.ts';
import { type ResearchPlan, readPlan } from '../eval/research/plan.ts';
import type { LogResult } from '../eval/research/records.ts';
import { research } from '../eval/research/research.ts';
import { screenshot } from '../eval/research/screenshot.ts';
import { LocalRunner } from '../eval/tasks/local-runner.ts';
import { defaultBudgetBytes } from '../pipeline/budget.ts';
import { renderPage } from '../report/page.ts';
import { writeReport } from '../report/write.ts';
import type { Interruption } from './interrupt.ts';
import { shortNumber } from './interval-chart.ts';
import { print, say, table } from './output.ts';
import { outputColumns, statusLine } from './run-flags.ts';
import { lookFirst } from './text-and-machine.ts';

interface ResearchFlags {
  readonly out?: string;
  readonly html?: string;
  readonly png?: string;
  readonly reportOnly?: boolean;
  readonly check?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const PNG_HEIGHT_BASE = 1700;
const PNG_HEIGHT_PER_RESULT = 95;

export function addResearch(program: Command, interruption: () => Interruption): void {
  program
    .command('research')
    .description('work through a plan of experiments: each is kept or discarded by rule, and logged')
    .argument('<plan>', 'YAML or JSON file; docs/research.md describes it')
    .option('--out <folder>', 'where the results are (default: PLAN.results beside the plan)')
    .option('--html <file>', 'write a report for the browser')
    .option('--png <file>', 'draw the report with headless Chromium')
    .option('--report-only', 'measure nothing: report what there is')
    .option('--check', 'read the plan and say whether it is sound')
    .option('--json', 'the results as JSON')
    .option('-q, --quiet', 'nothing on stderr but errors')
    .action((plan: string, flags: ResearchFlags) => researchPlan(plan, flags, interruption()));
}

async function researchPlan(file: string, flags: ResearchFlags, interruption: Interruption): Promise<void> {
  const plan = readPlan(file);
  const folder = flags.out ?? join(dirname(file), `${basename(file, extname(file))}.results`);
  if (flags.check === true) {
    return print(
      `${file}: ${plan.experiments.length} experiments, score ${plan.score}, results in ${folder}\n`,
    );
  }
  let stopped: unknown;
  if (flags.reportOnly !== true) {
    try {
      await measure(plan, folder, flags, interruption);
    } catch (error) {
      if (!MoestreamError.is(error) || error.code !== 'ABORTED') throw error;
      stopped = error;
    }
  }
  await report(readLog(folder), folder, flags);
  if (stopped === undefined) return;
  if (flags.quiet !== true) say('moestream: interrupted; the same command goes on from here');
  throw stopped;
}

async function measure(
  plan: ResearchPlan,
  folder: string,
  flags: ResearchFlags,
  { signal }: Interruption,
): Promise<void> {
  const status = statusLine(flags.quiet);
  const notice = (sentence: string): void => {
    status.clear();
    if (flags.quiet !== true) say(`moestream: ${sentence}`);
  };
  const log = ResearchLog.open(folder);
  const runner = new LocalRunner();
  const planned = plan.experiments.length;
  try {
    const done = log.content.results.length;
    if (done > 0) notice(`${folder} has ${done} results: going on behind them`);
    await lookFirst(
      [resolve(plan.folder, plan.baseline.model)],
      plan.baseline.settings?.io === 'buffered',
      notice,
    );
    await research({
      plan,
      log,
      folder,
      runner,
      budgetBytes: log.content.head?.budgetBytes ?? defaultBudgetBytes(),
      signal,
      notice,
      onRun: (name, round, rounds) => status.show(`${name}: round ${round + 1} of ${rounds}`),
      onResult: (result) => notice(resultLine(result, planned)),
    });
  } finally {
    status.clear();
    await runner.close();
    log.close();
  }
}

function resultLine({ number, name, verdict, score, reason }: LogResult, planned: number): string {
  const speed = score === null ? '' : ` ${shortNumber(score)} tok/s`;
  return `${number}/${planned} ${name}: ${verdict}${speed}${reason === '' ? '' : `; ${reason}`}`;
}

async function report(content: LogContent, folder: string, flags: ResearchFlags): Promise<void> {
  const page = (): string => renderPage(researchPage(content));
  if (flags.html !== undefined) writeReport(flags.html, [page()]);
  if (flags.json === true) {
    await print(
      `${JSON.stringify({ head: content.head ?? null, results: content.results }, undefined, 1)}\n`,
    );
  } else {
    await print(researchText(content.results, outputColumns()));
    if (flags.quiet !== true)
      say(`moestream: ${jsonlPath(folder)}${flags.html === undefined ? '' : `, ${flags.html}`}`);
  }
  if (flags.png === undefined) return;
  await screenshot(page(), flags.png, PNG_HEIGHT_BASE + PNG_HEIGHT_PER_RESULT * content.results.length);
}

/** One line per experiment; the name is cut to what the terminal has room for. */
export function researchText(results: readonly LogResult[], columns: number): string {
  if (results.length === 0) return 'no results yet\n';
  const cells = results.map(({ number, name, verdict, score, confidence, perplexity }) => [
    String(number),
    verdict,
    score === null ? '-' : shortNumber(score),
    confidence === null ? '' : `${confidence.ratio.toFixed(3)}x`,
    perplexity === null ? '' : perplexity.toPrecision(4),
    name,
  ]);
  const head = ['#', 'verdict', 'tok/s', 'by best', 'ppl', 'experiment'];
  const rows = [head, ...cells];
  const widths = head.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const taken = widths.slice(0, -1).reduce((sum, width) => sum + width + 2, 0);
  const room = Math.max(10, columns - taken);
  const aligned = rows.map((row) =>
    row.map((cell, column) => {
      if (column === row.length - 1) return cell.length > room ? `${cell.slice(0, room - 3)}...` : cell;
      return column === 1 ? cell : cell.padStart(widths[column]!);
    }),
  );
  const kept = results.filter(({ verdict }) => verdict === 'keep');
  const best = lastKept(results);
  const end =
    kept.length === 0
      ? 'nothing was kept: the baseline stands'
      : `kept ${kept.length} of ${results.length - 1}: ${totalGain(results).toFixed(3)} times the baseline; last: ${best?.name}`;
  return `${table(aligned)}\n${end}\n`;
}
