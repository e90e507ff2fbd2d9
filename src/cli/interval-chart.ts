/**
 * Medians and their intervals as lines of text, for a terminal of 60 columns.
 *
 *     split 1  |----o---|              29.8
 *     split 4            |--o-|        31.2
 *
 * The scale runs from the lowest to the highest end of an interval, not from zero: what matters is whether they overlap.
 */
export interface IntervalLine {
  readonly label: string;
  /** Undefined where there is nothing to draw. */
  readonly interval: { readonly low: number; readonly median: number; readonly high: number } | undefined;
}

const LABEL_CELLS_MAX = 24;
const NUMBER_CELLS = 7;
const PLOT_CELLS_MIN = 12;
const PLOT_CELLS_MAX = 60;

export function intervalChart(lines: readonly IntervalLine[], columns: number, unit: string): string {
  const drawn = lines.flatMap(({ interval }) => (interval === undefined ? [] : [interval]));
  if (drawn.length === 0) return '';
  const low = Math.min(...drawn.map((each) => each.low));
  const high = Math.max(...drawn.map((each) => each.high));
  const labelCells = Math.min(LABEL_CELLS_MAX, Math.max(...lines.map(({ label }) => label.length)));
  const room = columns - labelCells - NUMBER_CELLS - 4;
  const cells = Math.max(PLOT_CELLS_MIN, Math.min(PLOT_CELLS_MAX, room));
  const cellOf = (value: number): number =>
    high === low ? cells >> 1 : Math.round(((value - low) / (high - low)) * (cells - 1));
  const rows = lines.map(({ label, interval }) => {
    const name = label.slice(0, labelCells).padEnd(labelCells);
    if (interval === undefined) return `${name}  -`;
    const plot = ' '.repeat(cells).split('');
    plot.fill('-', cellOf(interval.low), cellOf(interval.high) + 1);
    plot[cellOf(interval.low)] = '|';
    plot[cellOf(interval.high)] = '|';
    plot[cellOf(interval.median)] = 'o';
    return `${name}  ${plot.join('')}  ${shortNumber(interval.median).padStart(NUMBER_CELLS - 1)}`.trimEnd();
  });
  const indent = ' '.repeat(labelCells + 2);
  const [left, right] = [shortNumber(low), `${shortNumber(high)} ${unit}`];
  const gap = Math.max(1, cells - left.length - right.length);
  return `${[...rows, `${indent}${left}${' '.repeat(gap)}${right}`].join('\n')}\n`;
}

/** Three digits that matter, four from a hundred on. */
export function shortNumber(value: number): string {
  if (value === 0) return '0';
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : size >= 0.1 ? 3 : 4);
}
