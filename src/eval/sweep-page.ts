/** A sweep as a page for the browser: one chart of medians with their intervals, every run, and the table. */
import type { Page } from '../report/page.ts';
import type { MachineLook } from './machine.ts';
import { describeSettings } from './settings.ts';
import type { Grid, SweepResult, SweepRow } from './sweep.ts';

const labelOf = (row: SweepRow): string =>
  Object.values(row.settings)
    .map((value) => String(value))
    .join(' · ');

const rounded = (value: number | undefined, digits = 4): number | null =>
  value === undefined ? null : Number(value.toPrecision(digits));

export function sweepPage(result: SweepResult, grid: Grid, machine: MachineLook, model: string): Page {
  const { rows, score, rounds, runsDone, runsPlanned, interrupted } = result;
  const names = grid.map(([name]) => name).join(' · ');
  const caches = [...new Set(rows.flatMap(({ cache }) => (cache === undefined ? [] : [cache])))];
  const categories = rows.map(labelOf);
  const points = (of: (row: SweepRow) => number | undefined) =>
    rows.flatMap((row, x) => {
      const y = of(row);
      return y === undefined ? [] : [{ x, y, note: describeSettings(row.settings) }];
    });
  // One series per round: a chart column holds one value of each series at one x.
  const everyRun = Array.from({ length: rounds }, (_, round) => ({
    label: `round ${round + 1}`,
    style: 'points' as const,
    tone: 'grey' as const,
    points: points((row) => row.scores[round] ?? undefined),
  })).filter((series) => series.points.length > 0);
  return {
    title: `Sweep of ${names}`,
    subtitle: `${model} · ${machine.processor}, ${machine.cores} cores`,
    sections: [
      {
        title: `${score}, tok/s`,
        blocks: [
          {
            kind: 'facts',
            facts: [
              { label: 'runs', value: interrupted ? `${runsDone} of ${runsPlanned}` : String(runsDone) },
              { label: 'rounds', value: String(rounds) },
              { label: 'machine', value: machine.busy ? 'busy' : 'quiet' },
            ],
          },
          {
            kind: 'text',
            text: `Runs are interleaved, every second round backwards. Caches: ${caches.join('; ')}.`,
          },
          ...(machine.busy ? [{ kind: 'text' as const, text: machine.sentences.join('; ') }] : []),
          {
            kind: 'chart',
            title: `Median and 95 % interval over ${names}`,
            note: 'Grey: every run. The scale does not start at zero.',
            x: { label: names, categories },
            y: { label: score, unit: 'tok/s' },
            series: [
              ...everyRun,
              { label: 'low', style: 'points', tone: 'teal', points: points((row) => row.score?.low) },
              { label: 'high', style: 'points', tone: 'teal', points: points((row) => row.score?.high) },
              { label: 'median', style: 'line', tone: 'blue', points: points((row) => row.score?.median) },
            ],
          },
        ],
      },
      { title: 'Numbers', blocks: [tableOf(result, grid)] },
    ],
    footer: `moestream sweep, ${new Date().toISOString()}`,
  };
}

function tableOf({ rows }: SweepResult, grid: Grid) {
  const failed = rows.some(({ failure }) => failure !== undefined);
  return {
    kind: 'table' as const,
    columns: [
      ...grid.map(([name]) => ({ label: name, align: 'right' as const })),
      { label: 'median', unit: 'tok/s' },
      { label: 'low' },
      { label: 'high' },
      { label: 'by first' },
      { label: 'p99', unit: 'ms' },
      { label: 'read', unit: 'MB/token' },
      { label: 'hits', unit: '%' },
      { label: 'stall', unit: '%' },
      { label: 'others', unit: '% CPU' },
      ...(failed ? [{ label: 'problem', align: 'left' as const }] : []),
    ],
    rows: rows.map((row) => [
      ...grid.map(([name]) => String(row.settings[name])),
      rounded(row.score?.median),
      rounded(row.score?.low),
      rounded(row.score?.high),
      rounded(row.toFirst?.ratio),
      rounded(row.tokenMillisP99),
      rounded(row.bytesReadPerToken === undefined ? undefined : row.bytesReadPerToken / 1e6),
      rounded(row.hitRate === undefined ? undefined : 100 * row.hitRate, 3),
      rounded(row.stallShare === undefined ? undefined : 100 * row.stallShare, 3),
      rounded(row.othersShare === undefined ? undefined : 100 * row.othersShare, 2),
      ...(failed ? [row.failure === undefined ? '' : `${row.failure.message} (${row.failure.code})`] : []),
    ]),
  };
}
