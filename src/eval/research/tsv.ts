/** A result as one line of a table: tabs between the cells, and none within them. */
import type { LogResult } from './records.ts';

const COLUMNS: readonly (readonly [string, (result: LogResult) => string | number | null])[] = [
  ['number', ({ number }) => number],
  ['time', ({ at }) => at],
  ['commit', ({ commit }) => commit],
  ['machine', ({ machine }) => machine],
  ['name', ({ name }) => name],
  ['changes', ({ changes }) => changes],
  ['model', ({ model }) => model],
  ['settings', ({ settings }) => JSON.stringify(settings)],
  ['environment', ({ environment }) => JSON.stringify(environment)],
  [
    'incumbent_runs',
    ({ rounds }) => rounds.map(({ incumbent }) => digits(incumbent?.score ?? null)).join(' '),
  ],
  ['runs', ({ rounds }) => rounds.map(({ experiment }) => digits(experiment.score)).join(' ')],
  ['score', ({ score }) => digits(score)],
  ['ratio', ({ confidence }) => digits(confidence?.ratio ?? null)],
  ['low', ({ confidence }) => digits(confidence?.low ?? null)],
  ['high', ({ confidence }) => digits(confidence?.high ?? null)],
  ['p99_ms', ({ p99Millis }) => digits(p99Millis)],
  ['p99_ratio', ({ p99Ratio }) => digits(p99Ratio)],
  ['perplexity', ({ perplexity }) => digits(perplexity)],
  ['perplexity_error', ({ perplexityError }) => digits(perplexityError)],
  ['cache', ({ cache }) => cache],
  ['output', ({ output }) => output],
  ['others_cpu', ({ othersShare }) => digits(othersShare)],
  ['verdict', ({ verdict }) => verdict],
  ['reason', ({ reason }) => reason],
];

const digits = (value: number | null): string => (value === null ? '' : String(Number(value.toPrecision(6))));

export const TSV_HEADER = COLUMNS.map(([name]) => name).join('\t');

export function tsvLine(result: LogResult): string {
  return COLUMNS.map(([, cell]) => String(cell(result) ?? '').replaceAll(/[\t\r\n\p{Cc}]+/gu, ' ')).join(
    '\t',
  );
}
