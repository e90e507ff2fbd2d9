/**
 * Runs in the reader's browser, not in Node: draws the charts of a page. `page.ts` writes the compiled file into the page.
 *
 * It imports nothing but types, since there is nobody to answer. Texts reach the page as text nodes or on a canvas only.
 */
import type { ChartData } from './charts.ts';

/** The part of the browser that is used here; Node's types have none of it. */
interface Element {
  textContent: string | null;
  readonly clientWidth: number;
  readonly dataset: Readonly<Record<string, string | undefined>>;
  readonly nextElementSibling: Element | null;
  replaceChildren(): void;
}
interface Query {
  addEventListener(event: 'change', listener: () => void): void;
}
interface Plot {
  readonly ctx: {
    save(): void;
    restore(): void;
    beginPath(): void;
    moveTo(x: number, y: number): void;
    lineTo(x: number, y: number): void;
    stroke(): void;
    setLineDash(dash: readonly number[]): void;
    fillText(text: string, x: number, y: number): void;
    strokeStyle: string;
    fillStyle: string;
    font: string;
    textAlign: string;
  };
  readonly bbox: {
    readonly left: number;
    readonly top: number;
    readonly width: number;
    readonly height: number;
  };
  readonly cursor: { readonly idx: number | null };
  valToPos(value: number, scale: string, canvas: boolean): number;
  setSize(size: { width: number; height: number }): void;
  destroy(): void;
}
interface PlotMaker {
  new (options: object, columns: ChartData['columns'], target: Element): Plot;
  readonly paths: {
    linear(): unknown;
    stepped(options: { align: 1 }): unknown;
    bars(options: { size: [number, number] }): unknown;
    points(): unknown;
  };
}
interface Browser {
  readonly uPlot: PlotMaker;
  readonly document: {
    readonly documentElement: Element;
    getElementById(id: string): Element | null;
    querySelectorAll(selector: string): Iterable<Element>;
  };
  readonly devicePixelRatio: number;
  matchMedia(query: string): Query;
  getComputedStyle(element: Element): { getPropertyValue(name: string): string };
  addEventListener(event: 'beforeprint' | 'afterprint', listener: () => void): void;
  readonly ResizeObserver: new (changed: () => void) => { observe(element: Element): void };
}

const browser = globalThis as unknown as Browser;
const { uPlot, document } = browser;
const HEIGHT = 320;
const LABEL_PIXELS = 70;
const PRINTED_WIDTH = 700;

const shade = (name: string): string =>
  browser.getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function numeral(value: number | null | undefined): string {
  if (value === null || value === undefined) return '-';
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(2);
  return value.toLocaleString('en', { maximumSignificantDigits: 4 });
}

function seriesOf(data: ChartData): object[] {
  return data.series.map(({ label, style, tone }, index) => {
    const colour = shade(tone);
    const said = data.values[index]!;
    const base = {
      label,
      stroke: colour,
      width: style === 'points' ? 0 : 1.75,
      spanGaps: true,
      value: (_: Plot, __: number | null, ___: number, row: number | null) =>
        row === null ? '-' : numeral(said[row]),
    };
    if (style === 'points') {
      return { ...base, paths: () => null, points: { show: true, size: 7, fill: colour, stroke: colour } };
    }
    if (style === 'bars') {
      return {
        ...base,
        width: 0,
        fill: colour,
        paths: uPlot.paths.bars({ size: [0.8, 80] }),
        points: { show: false },
      };
    }
    const paths = style === 'line' ? uPlot.paths.linear() : uPlot.paths.stepped({ align: 1 });
    const fill = style === 'area' ? { fill: data.stacked ? colour : `${colour}66` } : {};
    // A line through one point is no line.
    const single = said.filter((value) => value !== null).length < 2;
    return { ...base, ...fill, paths, points: { show: single, size: 7, fill: colour } };
  });
}

/** Whole numbers with a name each, as many as there is room for. */
function categoryAxis(names: readonly string[]): object {
  return {
    splits: (plot: Plot) => {
      const room = Math.max(1, plot.bbox.width / browser.devicePixelRatio / LABEL_PIXELS);
      const step = Math.max(1, Math.ceil(names.length / room));
      return names.map((_, index) => index).filter((index) => index % step === 0);
    },
    values: (_: Plot, splits: readonly number[]) => splits.map((index) => names[index] ?? ''),
    grid: { show: false },
  };
}

function axesOf(data: ChartData): object[] {
  const look = {
    stroke: shade('soft'),
    grid: { stroke: shade('line'), width: 1 },
    ticks: { stroke: shade('line'), width: 1 },
    font: '12px system-ui, sans-serif',
    labelFont: '13px system-ui, sans-serif',
    labelSize: 24,
  };
  const numbers = (_: Plot, splits: readonly (number | null)[]): string[] =>
    splits.map((value) => (value === null ? '' : numeral(value)));
  const x = data.categories === null ? { values: numbers } : categoryAxis(data.categories);
  const log = { filter: roundOnes };
  return [
    { ...look, label: data.xLabel, ...x, ...(data.xLog ? log : {}) },
    { ...look, label: data.yLabel, values: numbers, size: 66, ...(data.yLog ? log : {}) },
  ];
}

/** Of a logarithmic axis: 1, 2 and 5 times a power of ten, and above three powers the powers alone. */
function roundOnes(_: Plot, splits: readonly number[]): (number | null)[] {
  const wide = splits.at(-1)! / splits[0]! > 1000;
  return splits.map((value) => {
    const leading = Math.round(value / 10 ** Math.floor(Math.log10(value) + 1e-9));
    const near = Math.abs(value / 10 ** Math.floor(Math.log10(value) + 1e-9) - leading) < 0.01;
    return near && (wide ? [1] : [1, 2, 5]).includes(leading) ? value : null;
  });
}

/** Bars and areas stand on zero; counted things get half a place of room on both sides. */
function scalesOf(data: ChartData): object {
  const fromZero = data.series.some(({ style }) => style === 'bars' || style === 'area');
  const range = (_: Plot, low: number | null, high: number | null): [number, number] => {
    if (low === null || high === null) return [0, 1];
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    return [fromZero ? Math.min(0, low) : low - pad, high + pad];
  };
  const x =
    data.categories !== null
      ? { range: [-0.6, data.categories.length - 0.4] }
      : data.xLog
        ? { distr: 3, range: decades }
        : { range: padded };
  return { x: { time: false, ...x }, y: data.yLog ? { distr: 3 } : { range } };
}

/**
 * From a single digit times a power of ten: uPlot counts its ticks up from the lowest value in steps of that power, and one
 * like 0.00097 leads it past the next power without meeting it, after which it counts without end.
 */
function decades(_: Plot, low: number | null, high: number | null): [number, number] {
  if (low === null || high === null || !(low > 0)) return [1, 10];
  const power = 10 ** Math.floor(Math.log10(low));
  const from = Math.floor(low / power) * power;
  return [from, high > from ? high : 10 * from];
}

function padded(_: Plot, low: number | null, high: number | null): [number, number] {
  if (low === null || high === null) return [0, 1];
  const pad = (high - low || Math.abs(high) || 1) * 0.02;
  return [low - pad, high + pad];
}

/** Upright lines with names, each name a line lower than the one before, so that near ones stay readable. */
function drawMarks(plot: Plot, data: ChartData): void {
  const { ctx, bbox } = plot;
  const ratio = browser.devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = shade('soft');
  ctx.fillStyle = shade('ink');
  ctx.font = `${12 * ratio}px system-ui, sans-serif`;
  ctx.setLineDash([4 * ratio, 3 * ratio]);
  data.marks.forEach(({ x, label }, index) => {
    const at = plot.valToPos(x, 'x', true);
    if (!(at >= bbox.left && at <= bbox.left + bbox.width)) return;
    ctx.beginPath();
    ctx.moveTo(at, bbox.top);
    ctx.lineTo(at, bbox.top + bbox.height);
    ctx.stroke();
    const leftwards = at > bbox.left + bbox.width * 0.7;
    ctx.textAlign = leftwards ? 'right' : 'left';
    ctx.fillText(label, at + (leftwards ? -4 : 4) * ratio, bbox.top + (12 + 15 * index) * ratio);
  });
  ctx.restore();
}

function draw(target: Element, data: ChartData, width: number): Plot {
  const pointed = target.nextElementSibling;
  const options = {
    width,
    height: HEIGHT,
    cursor: { y: false, focus: { prox: 30 } },
    scales: scalesOf(data),
    series: [
      {
        label: data.xLabel,
        value: (_: Plot, value: number | null) =>
          value !== null && data.categories !== null
            ? (data.categories[Math.round(value)] ?? '')
            : numeral(value),
      },
      ...seriesOf(data),
    ],
    axes: axesOf(data),
    hooks: {
      draw: [(plot: Plot) => drawMarks(plot, data)],
      setCursor: [
        (plot: Plot) => {
          if (pointed !== null)
            pointed.textContent = plot.cursor.idx === null ? '' : (data.notes[plot.cursor.idx] ?? '');
        },
      ],
    },
  };
  return new uPlot(options, data.columns, target);
}

function start(): void {
  const text = document.getElementById('charts')?.textContent ?? '[]';
  const charts = JSON.parse(text) as ChartData[];
  const targets = [...document.querySelectorAll('[data-chart]')];
  let plots: Plot[] = [];
  const drawAll = (width?: number): void => {
    for (const plot of plots) plot.destroy();
    plots = targets.map((target) => {
      target.replaceChildren();
      return draw(target, charts[Number(target.dataset.chart)]!, width ?? target.clientWidth);
    });
  };
  const fit = (): void => {
    plots.forEach((plot, index) => {
      plot.setSize({ width: targets[index]!.clientWidth, height: HEIGHT });
    });
  };
  drawAll();
  browser.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawAll());
  browser.addEventListener('beforeprint', () => drawAll(PRINTED_WIDTH));
  browser.addEventListener('afterprint', () => drawAll());
  const watched = targets[0];
  if (watched !== undefined) new browser.ResizeObserver(fit).observe(watched);
}

start();
