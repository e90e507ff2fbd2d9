/** Rows of a benchmark as Markdown, CSV or JSON. */
import type { BenchRow } from '../eval/bench.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { type Column, markdownTable } from './markdown-table.ts';

export const BENCH_FORMATS = ['md', 'csv', 'json', 'jsonl'] as const;
export type BenchFormat = (typeof BENCH_FORMATS)[number];

const CHART_CELLS = 30;

const number = (value: number | null, digits: number): string =>
  value === null ? '' : value.toFixed(digits);
const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

const speed = ({ tokensPerSecond: { mean, standardDeviation } }: BenchRow): string =>
  `${mean.toFixed(2)} ± ${standardDeviation.toFixed(2)}`;

function columnsOf(rows: readonly BenchRow[]): Column<BenchRow>[] {
  const flags = [...new Set(rows.flatMap((row) => Object.keys(row.given)))];
  return [
    { head: 'model', cell: (row) => row.name, expendable: 3, left: true },
    { head: 'size', cell: (row) => formatBytes(row.sizeBytes), expendable: 7 },
    ...flags.map((flag) => ({ head: flag, cell: (row: BenchRow) => row.given[flag] ?? '', expendable: 0 })),
    { head: 'cache', cell: (row) => row.cache.mode, expendable: 4, left: true },
    { head: 'test', cell: (row) => row.test, expendable: 0 },
    { head: 't/s', cell: speed, expendable: 0 },
    { head: 'first ms', cell: (row) => number(row.firstTokenMillis, 0), expendable: 6 },
    { head: 'p50 ms', cell: (row) => number(row.tokenMillisP50, 1), expendable: 9 },
    { head: 'p99 ms', cell: (row) => number(row.tokenMillisP99, 1), expendable: 8 },
    { head: 'read/token', cell: (row) => formatBytes(Math.round(row.bytesReadPerToken)), expendable: 2 },
    { head: 'hit', cell: (row) => percent(row.hitRate), expendable: 5 },
    { head: 'stall', cell: (row) => percent(row.stallShare), expendable: 1 },
  ];
}

export function markdown(rows: readonly BenchRow[], terminalColumns?: number): string {
  const lines = [...markdownTable(columnsOf(rows), rows, terminalColumns), ...rows.flatMap(seriesLines)];
  return `${lines.join('\n')}\n`;
}

/** The speed of a long run over time, as bars. */
function seriesLines({ series, slowdown = 1, test }: BenchRow): string[] {
  if (series === undefined) return [];
  const most = Math.max(...series.map((part) => part.tokensPerSecond));
  const range = ({ fromToken, toToken }: (typeof series)[number]): string => `${fromToken}-${toToken}`;
  const wide = Math.max(...series.map((part) => range(part).length));
  const bars = series.map((part) => {
    const bar = '#'.repeat(Math.max(1, Math.round((CHART_CELLS * part.tokensPerSecond) / most)));
    return `    ${range(part).padStart(wide)}  ${part.tokensPerSecond.toFixed(2).padStart(8)}  ${bar}`;
  });
  const change = Math.abs(slowdown - 1) * 100;
  return [
    '',
    `${test} over time, tok/s by token:`,
    '',
    ...bars,
    '',
    `The last quarter takes ${change.toFixed(1)} % ${slowdown >= 1 ? 'longer' : 'less'} per token than the first (medians).`,
  ];
}

/** One value per column of `csv`; the order is part of the format. */
const CSV: readonly (readonly [name: string, value: (row: BenchRow) => string | number | null])[] = [
  ['model', (row) => row.model],
  ['name', (row) => row.name],
  ['size_bytes', (row) => row.sizeBytes],
  [
    'settings',
    (row) =>
      Object.entries(row.given)
        .map(([flag, value]) => `--${flag} ${value}`)
        .join(' '),
  ],
  ['cache', (row) => row.cache.mode],
  ['test', (row) => row.test],
  ['n_prompt', (row) => row.promptTokens],
  ['n_gen', (row) => row.decodeTokens],
  ['n_depth', (row) => row.depthTokens],
  ['repetitions', (row) => row.repetitions],
  ['avg_ts', (row) => row.tokensPerSecond.mean],
  ['stddev_ts', (row) => row.tokensPerSecond.standardDeviation],
  ['median_ts', (row) => row.tokensPerSecond.median],
  ['prefill_ts', (row) => row.prefillTokensPerSecond],
  ['decode_ts', (row) => row.decodeTokensPerSecond],
  ['first_token_ms', (row) => row.firstTokenMillis],
  ['token_ms_p50', (row) => row.tokenMillisP50],
  ['token_ms_p99', (row) => row.tokenMillisP99],
  ['bytes_read_per_token', (row) => row.bytesReadPerToken],
  ['hit_rate', (row) => row.hitRate],
  ['stall_share', (row) => row.stallShare],
  ['others_share', (row) => row.othersShare],
  ['throttled_ms', (row) => row.throttledMillis],
];

const quoted = (value: string | number | null): string =>
  typeof value === 'string' && /[",\n\r]/.test(value)
    ? `"${value.replaceAll('"', '""')}"`
    : String(value ?? '');

export const csvHead = (): string => `${CSV.map(([name]) => name).join(',')}\n`;
export const csvLine = (row: BenchRow): string => `${CSV.map(([, value]) => quoted(value(row))).join(',')}\n`;
