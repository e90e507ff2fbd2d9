/**
 * Charts as data: what to draw, with names and units, and how it is laid out for uPlot.
 *
 * uPlot wants one ascending column of x for all series of a chart; here every series brings its own points, and `joined`
 * makes the columns. Values that are not finite become gaps.
 *
 * Bounded: of a series of more than POINTS_MAX points every n-th is drawn, and the chart says so.
 */
import { invariant } from '../errors.ts';

export const TONES = ['blue', 'orange', 'green', 'red', 'purple', 'teal', 'yellow', 'grey'] as const;
/** Colours by name: the page has a light and a dark shade of each. */
export type Tone = (typeof TONES)[number];

export const SERIES_STYLES = ['line', 'step', 'area', 'bars', 'points'] as const;
export type SeriesStyle = (typeof SERIES_STYLES)[number];

export interface Axis {
  readonly label: string;
  /** Written behind the label in brackets. */
  readonly unit?: string;
  readonly scale?: 'linear' | 'log';
  /** Names of the values 0, 1, 2, ... for an axis that counts things instead of measuring. */
  readonly categories?: readonly string[];
}

export interface Point {
  readonly x: number;
  readonly y: number;
  /** Shown under the chart while the pointer is on the point. */
  readonly note?: string;
}

export interface Series {
  readonly label: string;
  readonly style: SeriesStyle;
  readonly tone: Tone;
  readonly points: readonly Point[];
}

/** An upright line at one x, with a name. */
export interface Mark {
  readonly x: number;
  readonly label: string;
}

export interface Chart {
  readonly kind: 'chart';
  readonly title: string;
  readonly note?: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
  /** Each series stands on the one before: for parts of a whole. All of them need the same x values. */
  readonly stacked?: boolean;
  readonly marks?: readonly Mark[];
}

const POINTS_MAX = 20_000;
/** Share of a category's width that its bars fill. */
const GROUP_WIDTH = 0.7;

/** What the page's script reads. Arrays are columns; null is a gap. */
export interface ChartData {
  readonly xLabel: string;
  readonly yLabel: string;
  readonly xLog: boolean;
  readonly yLog: boolean;
  readonly categories: readonly string[] | null;
  readonly stacked: boolean;
  readonly series: readonly { readonly label: string; readonly style: SeriesStyle; readonly tone: Tone }[];
  /** The x column, then one per series: what is drawn. */
  readonly columns: readonly (readonly (number | null)[])[];
  /** One per series: what is said. Differs from what is drawn in stacks. */
  readonly values: readonly (readonly (number | null)[])[];
  /** One per row, empty when there is nothing to say. */
  readonly notes: readonly string[];
  readonly marks: readonly Mark[];
}

const finite = (value: number): number | null => (Number.isFinite(value) ? value : null);
const named = (axis: Axis): string => (axis.unit === undefined ? axis.label : `${axis.label} (${axis.unit})`);

/** Every n-th point, so that at most POINTS_MAX are left. */
function thinned(points: readonly Point[]): readonly Point[] {
  const step = Math.ceil(points.length / POINTS_MAX);
  return step <= 1 ? points : points.filter((_, index) => index % step === 0);
}

/** A sentence for the chart when not every point is drawn; empty otherwise. */
export function thinnedNote(chart: Chart): string {
  const most = Math.max(0, ...chart.series.map((each) => each.points.length));
  const step = Math.ceil(most / POINTS_MAX);
  return step <= 1 ? '' : `Of ${most} points every ${step}th is drawn.`;
}

interface Rows {
  readonly xs: number[];
  /** (series, rows) */
  readonly ys: (number | null)[][];
  readonly notes: string[];
}

/** One ascending column of x for all series; points of different series at one x share a row. */
function joined(series: readonly (readonly Point[])[]): Rows {
  const entries = series.flatMap((points, index) =>
    points.filter((point) => Number.isFinite(point.x)).map((point) => ({ point, index })),
  );
  entries.sort((a, b) => a.point.x - b.point.x);
  const rows: Rows = { xs: [], ys: series.map(() => []), notes: [] };
  const last: number[] = series.map(() => -1);
  for (const { point, index } of entries) {
    const row = rows.xs.length - 1;
    const fits = row >= 0 && rows.xs[row] === point.x && last[index] !== row;
    const at = fits ? row : row + 1;
    if (!fits) {
      rows.xs.push(point.x);
      for (const column of rows.ys) column.push(null);
      rows.notes.push('');
    }
    rows.ys[index]![at] = finite(point.y);
    last[index] = at;
    if (point.note !== undefined) rows.notes[at] = point.note;
  }
  return rows;
}

/** Bars of several series beside each other: each a little to the side of its category. */
function besideEachOther(chart: Chart): readonly (readonly Point[])[] {
  const bars = chart.series.filter((each) => each.style === 'bars').length;
  let bar = 0;
  return chart.series.map((each) => {
    const points = thinned(each.points);
    if (each.style !== 'bars' || chart.stacked === true || bars < 2) return points;
    const shift = (bar++ - (bars - 1) / 2) * (GROUP_WIDTH / bars);
    return points.map((point) => ({ ...point, x: point.x + shift }));
  });
}

function stackedColumns(columns: readonly (readonly (number | null)[])[]): (number | null)[][] {
  const sums: number[] = [];
  return columns.map((column) =>
    column.map((value, row) => {
      sums[row] = (sums[row] ?? 0) + (value ?? 0);
      return sums[row]!;
    }),
  );
}

export function chartData(chart: Chart): ChartData {
  invariant(chart.series.length > 0, `chart "${chart.title}" has no series`);
  const { xs, ys, notes } = joined(besideEachOther(chart));
  const series = chart.series.map(({ label, style, tone }) => ({ label, style, tone }));
  const shown = chart.stacked === true ? stackedColumns(ys) : ys;
  if (chart.stacked === true) {
    // What stands on top reaches highest and is drawn first, so that those below it cover their part.
    for (const each of [series, shown, ys]) each.reverse();
  }
  return {
    xLabel: named(chart.x),
    yLabel: named(chart.y),
    xLog: chart.x.scale === 'log',
    yLog: chart.y.scale === 'log',
    categories: chart.x.categories ?? null,
    stacked: chart.stacked === true,
    series,
    columns: [xs, ...shown],
    values: ys,
    notes,
    marks: chart.marks ?? [],
  };
}

/** How often a value fell between `from` and `to`. */
export interface Bucket {
  readonly from: number;
  readonly to: number;
  readonly count: number;
}

export interface HistogramParts {
  readonly title: string;
  readonly note?: string;
  readonly x: Axis;
  /** What is counted: "tokens". */
  readonly of: string;
  /** Ascending, one behind the other. */
  readonly buckets: readonly Bucket[];
  readonly tone?: Tone;
  readonly marks?: readonly Mark[];
}

export function histogramChart(parts: HistogramParts): Chart {
  const points = parts.buckets.map(({ from, count }) => ({ x: from, y: count }));
  const last = parts.buckets.at(-1);
  if (last !== undefined) points.push({ x: last.to, y: 0 });
  return {
    kind: 'chart',
    title: parts.title,
    ...(parts.note === undefined ? {} : { note: parts.note }),
    x: parts.x,
    y: { label: parts.of },
    series: [{ label: parts.of, style: 'area', tone: parts.tone ?? 'blue', points }],
    marks: parts.marks ?? [],
  };
}

export interface TrialPoint extends Point {
  readonly kept: boolean;
}

export interface TrialsParts {
  readonly title: string;
  readonly note?: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly points: readonly TrialPoint[];
  /** Draws the best value so far as steps through the kept points. */
  readonly best?: 'highest' | 'lowest';
}

/** Trials one after another: kept ones, discarded ones, and the best so far. */
export function trialsChart(parts: TrialsParts): Chart {
  const kept = parts.points.filter((point) => point.kept);
  const series: Series[] = [];
  if (parts.best !== undefined) series.push(bestSoFar(kept, parts.best));
  const discarded = parts.points.filter((point) => !point.kept);
  series.push({ label: 'discarded', style: 'points', tone: 'grey', points: discarded });
  series.push({ label: 'kept', style: 'points', tone: 'green', points: kept });
  const { title, note, x, y } = parts;
  return { kind: 'chart', title, ...(note === undefined ? {} : { note }), x, y, series };
}

function bestSoFar(kept: readonly Point[], best: 'highest' | 'lowest'): Series {
  const better = best === 'highest' ? Math.max : Math.min;
  let so = best === 'highest' ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
  const points = [...kept]
    .sort((a, b) => a.x - b.x)
    .map(({ x, y }) => {
      if (Number.isFinite(y)) so = better(so, y);
      return { x, y: so };
    });
  return { label: `${best} so far`, style: 'step', tone: 'green', points };
}
