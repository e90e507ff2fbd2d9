/**
 * The profile for a terminal: 60 columns at most, no colours, the same text in a pipe.
 *
 * Names that come from files are cut and stripped of what a terminal would act on.
 */
import { formatBytes } from '../pipeline/memory.ts';
import type { DistributionFigures } from './distribution.ts';
import type { LayerFigures, PhaseFigures, ProfileFigures } from './figures.ts';
import { PART_LABELS, PARTS } from './parts.ts';

export const COLUMNS = 60;

/** Three digits that matter, at most six characters: 0.012, 3.45, 120, 12345. */
export function digits(value: number): string {
  if (value === 0) return '0';
  if (value >= 99.95) return value.toFixed(0);
  if (value >= 9.995) return value.toFixed(1);
  return value.toFixed(value >= 0.9995 ? 2 : 3);
}

const percent = (share: number): string => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** Printable, and no longer than this. */
export function plainName(text: string, most: number): string {
  const printable = text.replace(/[^\p{L}\p{M}\p{N}\p{P}\p{S} ]/gu, '?');
  return printable.length <= most ? printable : `${printable.slice(0, most - 3)}...`;
}

/** First column to the left, the others to the right. */
function lines(rows: readonly (readonly string[])[], widths: readonly number[]): string {
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!)))
      .join('')
      .trimEnd();
  return `${rows.map(line).join('\n')}\n`;
}

function phases(figures: ProfileFigures): string {
  const both = (name: string, of: (phase: PhaseFigures) => string): readonly string[] => [
    name,
    of(figures.prompt),
    of(figures.answer),
  ];
  const rows = [
    ['', 'prompt', 'answer'],
    both('tokens', (phase) => String(phase.tokens)),
    both('tokens per second', (phase) => digits(phase.tokensPerSecond)),
    both('milliseconds', (phase) => digits(phase.totalMillis)),
    ...PARTS.map((part) => both(`  ${PART_LABELS[part]}`, (phase) => percent(phase.partShares[part]))),
    both('  not accounted for', (phase) => percent(phase.unaccountedShare)),
    both('read', (phase) => formatBytes(phase.disk.bytesRead)),
    both('GB/s while reading', (phase) => digits(phase.disk.gigabytesPerSecondBusy)),
    both('reads under way', (phase) => digits(phase.disk.meanDepth)),
    both('disk busy', (phase) => percent(phase.disk.busyShare)),
    both('experts hit', (phase) => percent(shareOf(phase, 'hits'))),
    both('experts late', (phase) => percent(shareOf(phase, 'lateHits'))),
  ];
  return lines(rows, [26, 12, 12]);
}

function shareOf(phase: PhaseFigures, what: 'hits' | 'lateHits'): number {
  const lookups = phase.layers.reduce((sum, layer) => sum + layer.lookups, 0);
  return lookups === 0 ? 0 : phase.layers.reduce((sum, layer) => sum + layer[what], 0) / lookups;
}

function stages(phase: PhaseFigures): string {
  const row = (name: string, figures: DistributionFigures): readonly string[] => [
    name,
    String(figures.count),
    ...[figures.p50Millis, figures.p90Millis, figures.p99Millis, figures.totalMillis].map(digits),
  ];
  const { disk } = phase;
  const rows = [
    ['', 'times', 'p50', 'p90', 'p99', 'total'],
    row('step', phase.stepTime),
    ...PARTS.map((part) => row(`  ${PART_LABELS[part]}`, phase.partTimes[part])),
    ['each'],
    ...Object.entries(phase.stages).map(([name, figures]) => row(`  ${name}`, figures)),
    row('read', disk.latency),
    row('  queued before', disk.queued),
  ];
  return lines(rows, [18, 9, 8, 8, 8, 9]);
}

function layers(phase: PhaseFigures): string {
  const per = (value: number): string => digits(value / Math.max(1, phase.steps));
  const row = (layer: LayerFigures): readonly string[] => [
    String(layer.layer),
    per(layer.partMillis.compute),
    per(layer.partMillis.disk),
    per(layer.partMillis.handOffs),
    per(layer.partMillis.scheduling),
    digits(layer.readWait.p99Millis),
    percent(layer.lookups === 0 ? 0 : layer.hits / layer.lookups),
    digits(layer.bytesRead / 1e6 / Math.max(1, phase.steps)),
  ];
  const rows = [['layer', 'comp', 'disk', 'hand', 'sched', 'p99', 'hit', 'MB'], ...phase.layers.map(row)];
  return lines(rows, [6, 8, 8, 7, 7, 8, 8, 8]);
}

function occupancy(figures: ProfileFigures): string {
  const rows = [
    ['', 'room', 'mean', 'most'],
    ...figures.occupancy.map(({ name, most, mean, highest }) => [
      name,
      String(most),
      digits(mean),
      String(highest),
    ]),
  ];
  return lines(rows, [22, 8, 10, 8]);
}

/** What became of what was read ahead, and of the hints that were not followed. */
export function prefetchRows({ result }: ProfileFigures): readonly (readonly [string, string])[] {
  const { experts, predictions } = result.stats;
  if (experts.hints === 0 && predictions.hintsGiven === 0) return [];
  return [
    ['prefetches', String(experts.prefetches)],
    ['  useful', formatBytes(experts.usefulPrefetchBytes)],
    ['  late', formatBytes(experts.latePrefetchBytes)],
    ['  wasted', formatBytes(experts.wastedPrefetchBytes)],
    ['  evicted for them, read again', formatBytes(experts.displacedBytes)],
    ['hints', String(experts.hints)],
    ['  already here', String(experts.hintsPresent)],
    ['  too late', String(experts.hintsStale)],
    ['  over the limit', String(experts.hintsOverLimit)],
    ['  no room', String(experts.hintsNoRoom)],
  ];
}

function prefetch(figures: ProfileFigures): string {
  const rows = prefetchRows(figures);
  return rows.length === 0 ? '' : lines([['read ahead', ''], ...rows], [36, 14]);
}

/** The whole report. */
export function profileText(figures: ProfileFigures): string {
  const { subject } = figures;
  const lost =
    figures.eventsLost === 0
      ? ''
      : `\n${figures.eventsLost} of ${figures.eventsLost + figures.eventsKept} events were lost: times are too short.\n`;
  const about =
    `${plainName(subject.model, COLUMNS)}\n${subject.layers} layers of ${subject.experts} experts, ` +
    `${subject.expertsPerToken} per token; ${subject.slots} slots\nread with ${subject.readEngine}\n`;
  return [
    about,
    phases(figures),
    prefetch(figures),
    `prompt, ms (a step is a chunk)\n${stages(figures.prompt)}`,
    `answer, ms (a step is a token)\n${stages(figures.answer)}`,
    `answer, by layer, ms per token; p99 of waiting for reads\n${layers(figures.answer)}`,
    `rings and queues, looked at every 5 ms\n${occupancy(figures)}`,
  ]
    .filter((part) => part !== '')
    .join('\n')
    .concat(lost);
}
