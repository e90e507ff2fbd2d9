/**
 * What a section of a page is made of, and its HTML: text, facts, tables, shares of a whole, waterfalls, charts.
 *
 * All but charts are plain HTML and need no script, so they print and can be read where scripts are off.
 */
import { type Chart, type Tone, thinnedNote } from './charts.ts';
import { escapeHtml } from './html.ts';

export interface Text {
  readonly kind: 'text';
  readonly text: string;
}

/** Single values with their names, the most important first. */
export interface Facts {
  readonly kind: 'facts';
  readonly facts: readonly { readonly label: string; readonly value: string }[];
}

export interface Column {
  readonly label: string;
  readonly unit?: string;
  /** Numbers stand to the right. Default: right when every cell is a number. */
  readonly align?: 'left' | 'right';
}

export interface Table {
  readonly kind: 'table';
  readonly title?: string;
  readonly note?: string;
  readonly columns: readonly Column[];
  /** Numbers are written as they are: round before. Null is an empty cell. */
  readonly rows: readonly (readonly (string | number | null)[])[];
}

/** Parts of a whole, as one bar with a legend. */
export interface Shares {
  readonly kind: 'shares';
  readonly title: string;
  readonly note?: string;
  readonly unit: string;
  readonly parts: readonly { readonly label: string; readonly value: number; readonly tone: Tone }[];
}

export interface WaterfallSpan {
  readonly from: number;
  readonly to: number;
  readonly tone: Tone;
  readonly label: string;
}

/** When what happened: one row per thing, from left to right in time. */
export interface Waterfall {
  readonly kind: 'waterfall';
  readonly title: string;
  readonly note?: string;
  readonly unit: string;
  readonly legend: readonly { readonly label: string; readonly tone: Tone }[];
  readonly rows: readonly { readonly label: string; readonly spans: readonly WaterfallSpan[] }[];
}

export type Block = Text | Facts | Table | Shares | Waterfall | Chart;

const paragraph = (text: string | undefined, className = ''): string =>
  text === undefined || text === '' ? '' : `<p class="${className}">${escapeHtml(text)}</p>`;

const heading = (text: string | undefined): string =>
  text === undefined ? '' : `<h3>${escapeHtml(text)}</h3>`;

/** `chartNumber` is the chart's place among the page's data. */
export function renderBlock(block: Block, chartNumber: number): string {
  switch (block.kind) {
    case 'text':
      return paragraph(block.text);
    case 'facts':
      return renderFacts(block);
    case 'table':
      return renderTable(block);
    case 'shares':
      return renderShares(block);
    case 'waterfall':
      return renderWaterfall(block);
    case 'chart':
      return renderChart(block, chartNumber);
  }
}

function renderFacts({ facts }: Facts): string {
  const each = facts.map(
    ({ label, value }) => `<div><dt>${escapeHtml(label)}</dt><dd>${escapeHtml(value)}</dd></div>`,
  );
  return `<dl class="facts">${each.join('')}</dl>`;
}

function renderTable({ title, note, columns, rows }: Table): string {
  const right = columns.map(
    (column, index) =>
      (column.align ?? (rows.every((row) => typeof row[index] !== 'string') ? 'right' : 'left')) === 'right',
  );
  const cell = (tag: string, index: number, content: string): string =>
    `<${tag}${right[index] === true ? ' class="right"' : ''}>${content}</${tag}>`;
  const head = columns.map(({ label, unit }, index) => {
    const small = unit === undefined ? '' : ` <small>${escapeHtml(unit)}</small>`;
    return cell('th', index, escapeHtml(label) + small);
  });
  const body = rows.map(
    (row) =>
      `<tr>${row.map((value, index) => cell('td', index, escapeHtml(String(value ?? '')))).join('')}</tr>`,
  );
  return (
    `<figure>${heading(title)}${paragraph(note, 'note')}<div class="wide"><table><thead><tr>${head.join('')}</tr></thead>` +
    `<tbody>${body.join('')}</tbody></table></div></figure>`
  );
}

const percent = (share: number): string => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const css = (share: number): string => `${(100 * share).toFixed(3)}%`;

const swatch = (tone: Tone, label: string, value = ''): string =>
  `<li><i class="${tone}"></i>${escapeHtml(label)}${value === '' ? '' : ` <b>${escapeHtml(value)}</b>`}</li>`;

function renderShares({ title, note, unit, parts }: Shares): string {
  const total = parts.reduce((sum, part) => sum + Math.max(0, part.value), 0);
  const shareOf = (value: number): number => (total === 0 ? 0 : Math.max(0, value) / total);
  const bar = parts.map(({ label, value, tone }) => {
    const tip = escapeHtml(`${label}: ${compact(value)} ${unit}, ${percent(shareOf(value))}`);
    return `<i class="${tone}" style="width:${css(shareOf(value))}" title="${tip}"></i>`;
  });
  const legend = parts.map(({ label, value, tone }) =>
    swatch(tone, label, `${percent(shareOf(value))} · ${compact(value)} ${unit}`),
  );
  return (
    `<figure>${heading(title)}${paragraph(note, 'note')}<div class="shares">${bar.join('')}</div>` +
    `<ul class="legend">${legend.join('')}</ul></figure>`
  );
}

const TICKS = 5;

function renderWaterfall({ title, note, unit, legend, rows }: Waterfall): string {
  const end = rows.reduce((most, row) => row.spans.reduce((far, span) => Math.max(far, span.to), most), 0);
  const step = niceStep(end / TICKS);
  const ticks: string[] = [];
  for (let at = 0; step > 0 && at <= end; at += step) {
    const edge = at > 0.95 * end ? ' class="edge"' : '';
    ticks.push(`<span${edge} style="left:${css(at / end)}">${compact(at)}</span>`);
  }
  const lines = rows.map(({ label, spans }) => {
    const bars = spans.map((span) => {
      const tip = escapeHtml(`${label}, ${span.label}: ${compact(span.to - span.from)} ${unit}`);
      const place = `left:${css(span.from / end)};width:${css((span.to - span.from) / end)}`;
      return `<i class="${span.tone}" style="${place}" title="${tip}"></i>`;
    });
    return `<div><b>${escapeHtml(label)}</b><span class="track">${bars.join('')}</span></div>`;
  });
  return (
    `<figure>${heading(title)}${paragraph(note, 'note')}` +
    `<ul class="legend">${legend.map((each) => swatch(each.tone, each.label)).join('')}</ul>` +
    `<div class="waterfall" style="--step:${css(end === 0 ? 1 : step / end)}">${lines.join('')}` +
    `<div class="axis"><b>${escapeHtml(unit)}</b><span>${ticks.join('')}</span></div></div></figure>`
  );
}

function renderChart(chart: Chart, chartNumber: number): string {
  return (
    `<figure>${heading(chart.title)}${paragraph(chart.note, 'note')}${paragraph(thinnedNote(chart), 'note')}` +
    `<div class="chart" data-chart="${chartNumber}"></div><p class="pointed"></p></figure>`
  );
}

/** 1, 2 or 5 times a power of ten, at least `least`; 0 for nothing. */
function niceStep(least: number): number {
  if (!(least > 0)) return 0;
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 5, 10].find((each) => each * power >= least) ?? 10);
}

/** Three digits that matter. */
function compact(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const digits = Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return String(Number(value.toFixed(digits)));
}
