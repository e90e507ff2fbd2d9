/** Research as a page for the browser: the way from the baseline to what was kept, and every experiment with its reason. */
import type { Table } from '../../report/blocks.ts';
import { type Chart, trialsChart } from '../../report/charts.ts';
import type { Page } from '../../report/page.ts';
import type { LogContent } from './log.ts';
import type { LogResult } from './records.ts';

/** More names than this hide the curve. */
const MARKS_MAX = 10;
const REASON_MAX = 90;
/** Beyond this an interval says no more than that nothing is known, and would squeeze all others. */
const GAIN_SHOWN_MAX = 100;

const rounded = (value: number | null, digits = 4): number | null =>
  value === null ? null : Number(value.toPrecision(digits));
const percent = (ratio: number): string => `${ratio >= 1 ? '+' : ''}${(100 * (ratio - 1)).toFixed(1)} %`;
const labelOf = ({ number, name }: LogResult): string => `${number} ${name}`;
/** Names are too long for an axis: they stand at the marks, under the pointer and in the table. */
const numbersOf = (results: readonly LogResult[]): string[] => results.map(({ number }) => String(number));
const noteOf = (result: LogResult): string =>
  `${labelOf(result)}: ${result.verdict}${result.reason === '' ? '' : `, ${result.reason}`}`;

/** The result whose settings are in force at the end. */
export function lastKept(results: readonly LogResult[]): LogResult | undefined {
  return results.findLast(({ verdict }) => verdict === 'keep' || verdict === 'baseline');
}

/** The product of what was kept: each gain was measured against its incumbent, so drift of the machine is not in it. */
export function totalGain(results: readonly LogResult[]): number {
  return results.reduce(
    (gain, { verdict, confidence }) => (verdict === 'keep' ? gain * (confidence?.ratio ?? 1) : gain),
    1,
  );
}

export function researchPage({ head, results }: LogContent): Page {
  const kept = results.filter(({ verdict }) => verdict === 'keep');
  const failed = results.filter(({ verdict }) => verdict === 'error');
  const best = lastKept(results);
  const score = head?.score ?? 'score';
  const busiest = Math.max(0, ...results.map(({ othersShare }) => othersShare ?? 0));
  return {
    title: head?.name ?? 'Research',
    subtitle:
      head === undefined
        ? 'nothing measured yet'
        : `${head.machine} · begun ${head.startedAt.slice(0, 16).replace('T', ' ')} UTC`,
    sections: [
      {
        title: 'Trajectory',
        blocks: [
          {
            kind: 'facts',
            facts: [
              { label: 'experiments', value: String(Math.max(0, results.length - 1)) },
              { label: 'kept', value: String(kept.length) },
              { label: 'failed', value: String(failed.length) },
              { label: 'gain of what was kept', value: percent(totalGain(results)) },
              { label: 'others took at most', value: `${Math.round(100 * busiest)} % CPU` },
            ],
          },
          trajectory(results, score),
          gains(results),
          ...(results.some(({ perplexity }) => perplexity !== null)
            ? [quality(results, head?.perplexityRaise ?? null)]
            : []),
        ],
      },
      {
        title: 'What is kept',
        blocks: [
          {
            kind: 'table',
            columns: [{ label: 'what' }, { label: 'value' }],
            rows: [
              ['model', best?.model ?? ''],
              ...Object.entries(best?.settings ?? {}).map(([name, value]) => [name, String(value)]),
              ...Object.entries(best?.environment ?? {}),
            ],
          },
        ],
      },
      { title: 'Experiments', blocks: [experiments(results), changes(results)] },
      { title: 'Measurements', blocks: [measurements(results)] },
    ],
    footer: `moestream research${head === undefined ? '' : ` ${head.moestream}`}; medians of interleaved runs, 95 % intervals of paired ratios`,
  };
}

function trajectory(results: readonly LogResult[], score: string): Chart {
  const isKept = ({ verdict }: LogResult): boolean => verdict === 'keep' || verdict === 'baseline';
  const measured = results.filter(({ score, verdict }) => score !== null && verdict !== 'error');
  const chart = trialsChart({
    title: 'Score of every experiment',
    note: 'Green was kept, grey discarded; the steps follow the best that was kept. Point at a dot for its reason.',
    x: { label: 'experiment', categories: numbersOf(results) },
    y: { label: score, unit: 'tok/s' },
    best: 'highest',
    points: measured.map((result) => ({
      x: results.indexOf(result),
      y: result.score!,
      kept: isKept(result),
      note: noteOf(result),
    })),
  });
  const kept = results.filter(({ verdict }) => verdict === 'keep').slice(0, MARKS_MAX);
  // The steps go on to the last experiment: what was kept holds until now.
  const series = chart.series.map((each) => {
    const last = each.points.at(-1);
    if (each.style !== 'step' || last === undefined) return each;
    return { ...each, points: [...each.points, { x: Math.max(last.x, results.length - 1), y: last.y }] };
  });
  return {
    ...chart,
    series,
    marks: kept.map((result) => ({ x: results.indexOf(result), label: result.name })),
  };
}

/** Against the incumbent of its time: the fair comparison, since both ran in the same minutes. */
function gains(results: readonly LogResult[]): Chart {
  const compared = results.filter(({ confidence }) => confidence !== null);
  const series = (
    label: string,
    tone: 'green' | 'grey' | 'teal',
    of: (result: LogResult) => number | null,
  ) => ({
    label,
    tone,
    style: 'points' as const,
    points: compared.flatMap((result) => {
      const value = of(result);
      return value === null
        ? []
        : [
            {
              x: results.indexOf(result),
              y: Math.min(GAIN_SHOWN_MAX, Number((100 * (value - 1)).toFixed(2))),
              note: noteOf(result),
            },
          ];
    }),
  });
  const zero = results.length < 2 ? [] : [0, results.length - 1].map((x) => ({ x, y: 0 }));
  return {
    kind: 'chart',
    title: 'Gain against the incumbent',
    note: 'With the ends of the 95 % interval: an experiment is kept when the lower end is above zero and no gate is closed. More than +100 % is drawn there.',
    x: { label: 'experiment', categories: numbersOf(results) },
    y: { label: 'gain', unit: '%' },
    series: [
      { label: 'no difference', tone: 'blue', style: 'line', points: zero },
      series('low', 'teal', ({ confidence }) => confidence!.low),
      series('high', 'teal', ({ confidence }) => confidence!.high),
      series('discarded', 'grey', ({ confidence, verdict }) =>
        verdict === 'keep' ? null : confidence!.ratio,
      ),
      series('kept', 'green', ({ confidence, verdict }) => (verdict === 'keep' ? confidence!.ratio : null)),
    ],
  };
}

function quality(results: readonly LogResult[], raise: number | null): Chart {
  const limit = raise === null ? null : (results[0]?.perplexity ?? Number.NaN) * (1 + raise);
  const gate = limit === null ? [] : [0, results.length - 1].map((x) => ({ x, y: limit }));
  return {
    kind: 'chart',
    title: 'Perplexity',
    note: 'Lower is better; what rises above the gate is discarded, however fast it is.',
    x: { label: 'experiment', categories: numbersOf(results) },
    y: { label: 'perplexity' },
    series: [
      ...(gate.length === 0
        ? []
        : [{ label: 'gate', style: 'line' as const, tone: 'red' as const, points: gate }]),
      {
        label: 'perplexity',
        style: 'points',
        tone: 'orange',
        points: results.flatMap((result, x) =>
          result.perplexity === null
            ? []
            : [{ x, y: Number(result.perplexity.toPrecision(6)), note: noteOf(result) }],
        ),
      },
    ],
  };
}

function experiments(results: readonly LogResult[]): Table {
  return {
    kind: 'table',
    columns: [
      { label: '#' },
      { label: 'experiment' },
      { label: 'verdict' },
      { label: 'score', unit: 'tok/s' },
      { label: 'gain', align: 'right' },
      { label: 'p99', align: 'right' },
      { label: 'perplexity' },
      { label: 'output' },
      { label: 'reason' },
    ],
    rows: results.map((result) => [
      result.number,
      result.name,
      result.verdict,
      rounded(result.score),
      result.confidence === null ? '' : percent(result.confidence.ratio),
      result.p99Ratio === null ? '' : percent(result.p99Ratio),
      rounded(result.perplexity, 5),
      result.output === 'unknown' ? '' : result.output,
      cut(result.reason),
    ]),
  };
}

/** The whole reason is in the log; here it must leave room for the rest. */
const cut = (text: string): string =>
  text.length > REASON_MAX ? `${text.slice(0, REASON_MAX - 3)}...` : text;

function changes(results: readonly LogResult[]): Table {
  return {
    kind: 'table',
    columns: [{ label: '#' }, { label: 'experiment' }, { label: 'changes' }, { label: 'why' }],
    rows: results
      .filter(({ verdict }) => verdict !== 'baseline')
      .map((result) => [result.number, result.name, result.changes, result.why]),
  };
}

function measurements(results: readonly LogResult[]): Table {
  return {
    kind: 'table',
    note: 'Every repetition, in tok/s.',
    columns: [
      { label: '#' },
      { label: 'experiment' },
      { label: 'incumbent', align: 'left' },
      { label: 'experiment runs', align: 'left' },
      { label: 'read', unit: 'MB/token' },
      { label: 'hits', unit: '%' },
      { label: 'others', unit: '% CPU' },
      { label: 'time' },
      { label: 'commit' },
      { label: 'caches' },
    ],
    rows: results.map(({ number, name, rounds, othersShare, at, commit, cache }) => [
      number,
      name,
      rounds.map(({ incumbent }) => rounded(incumbent?.score ?? null) ?? '-').join(' '),
      rounds.map(({ experiment }) => rounded(experiment.score)).join(' '),
      rounded(rounds[0] === undefined ? null : rounds[0].experiment.bytesReadPerToken / 1e6, 3),
      rounded(rounds[0] === undefined ? null : 100 * rounds[0].experiment.hitRate, 3),
      rounded(othersShare === null ? null : 100 * othersShare, 2),
      at.slice(0, 19).replace('T', ' '),
      (commit ?? '').slice(0, 8),
      cache,
    ]),
  };
}
