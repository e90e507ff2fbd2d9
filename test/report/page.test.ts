/** Pages: whole in one file, hostile texts stay texts, and a real browser draws them without a complaint. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type Chart, chartData, histogramChart, trialsChart } from '#dist/report/charts.js';
import { type Page, renderPage } from '#dist/report/page.js';
import { checkReportPath, writeReport } from '#dist/report/write.js';
import { findChromium, openPage } from '../support/chromium.js';
import { temporaryFolder } from '../support/folder.js';

const HOSTILE = `"><img src=x onerror="console.error('run')"></script></title><script>console.error('run')</script><!--\u2028\u202e\ud800`;

function everyBlock(text: string): Page {
  const points = [0, 1, 2, 3].map((x) => ({ x, y: x * x + 1, note: text }));
  const axis = { label: text, unit: text };
  const chart = (style: Chart['series'][number]['style']): Chart => ({
    kind: 'chart',
    title: text,
    note: text,
    x: { ...axis, ...(style === 'bars' ? { categories: [text, 'b', 'c', 'd'] } : {}) },
    y: axis,
    stacked: style === 'bars',
    series: [
      { label: text, style, tone: 'blue', points },
      { label: `${text} 2`, style, tone: 'orange', points },
    ],
    marks: [{ x: 1, label: text }],
  });
  const buckets = [1, 2, 4].map((from) => ({ from, to: 2 * from, count: from }));
  const trials = points.map((point) => ({ ...point, kept: point.x % 2 === 0 }));
  return {
    title: text,
    subtitle: text,
    footer: text,
    sections: [
      {
        title: text,
        blocks: [
          { kind: 'text', text },
          { kind: 'facts', facts: [{ label: text, value: text }] },
          {
            kind: 'table',
            title: text,
            note: text,
            columns: [{ label: text, unit: text }],
            rows: [[text], [null]],
          },
          { kind: 'shares', title: text, unit: text, parts: [{ label: text, value: 3, tone: 'red' }] },
          {
            kind: 'waterfall',
            title: text,
            unit: text,
            legend: [{ label: text, tone: 'teal' }],
            rows: [{ label: text, spans: [{ from: 0, to: 2, tone: 'teal', label: text }] }],
          },
          ...(['line', 'step', 'area', 'bars', 'points'] as const).map(chart),
          histogramChart({ title: text, x: { ...axis, scale: 'log' }, of: text, buckets }),
          trialsChart({ title: text, x: axis, y: axis, points: trials, best: 'lowest' }),
        ],
      },
    ],
  };
}

describe('a page', () => {
  const html = renderPage(everyBlock(HOSTILE));

  it('keeps hostile texts texts', () => {
    expect(html.match(/<script/g)).toHaveLength(3);
    expect(html).not.toContain('<img');
    expect(html).not.toContain('\u202e');
    expect(html.match(/<!--/g)).toBeNull();
    const data = /<script type="application\/json" id="charts">(.*?)<\/script>/s.exec(html)?.[1];
    expect(JSON.parse(data ?? '')[0].series[0].label).toContain('</script>');
  });

  it('asks for nothing outside itself', () => {
    const plain = renderPage(everyBlock('plain'));
    expect(plain).not.toMatch(/<[^>]*\b(?:src|href|action)\s*=/);
    expect(html).toContain("default-src 'none'");
    expect(html).not.toContain('@import');
    expect(html).not.toContain('url(');
  });

  const chromium = findChromium();
  it.skipIf(chromium === undefined)('is drawn by a browser without an error', () => {
    const path = join(temporaryFolder(), 'page.html');
    writeFileSync(path, html);
    const page = openPage(chromium!, path);
    expect(page.console).toEqual([]);
    expect(page.dom.match(/<canvas/g)).toHaveLength(7);
  });

  it.skipIf(chromium === undefined)('draws logarithmic axes wherever they begin', () => {
    const path = join(temporaryFolder(), 'page.html');
    const starts = [9.97e-7, 0.00097, 0.0995, 1, 9.99, 999];
    const blocks = starts.map((from) =>
      histogramChart({
        title: 'times',
        x: { label: 'time', scale: 'log' },
        of: 'tokens',
        buckets: [1, 1.2, 1.4].map((factor) => ({ from: from * factor, to: from * factor * 1.2, count: 1 })),
      }),
    );
    writeFileSync(path, renderPage({ title: 't', sections: [{ title: 's', blocks }] }));
    const page = openPage(chromium!, path);
    expect(page.console).toEqual([]);
    expect(page.dom.match(/<canvas/g)).toHaveLength(starts.length);
  });

  it.skipIf(chromium === undefined)(
    'notices an error when there is one: the policy stops a foreign script',
    () => {
      const path = join(temporaryFolder(), 'page.html');
      writeFileSync(path, html.replace('</main>', '</main><script>document.title = "run"</script>'));
      const page = openPage(chromium!, path);
      expect(page.console.join('\n')).toContain('Content Security Policy');
      expect(page.dom).not.toContain('<title>run');
    },
  );
});

describe('chart data', () => {
  const chart = (points: readonly { x: number; y: number }[][], stacked = false): Chart => ({
    kind: 'chart',
    title: 't',
    x: { label: 'x' },
    y: { label: 'y' },
    stacked,
    series: points.map((each, index) => ({ label: `s${index}`, style: 'line', tone: 'blue', points: each })),
  });

  it('joins series of different x into ascending rows, twice the same x of one series into two', () => {
    const data = chartData(
      chart([
        [{ x: 2, y: 20 }, { x: 0, y: 0 }, { x: 2, y: 21 }], // biome-ignore format: one line
        [{ x: 1, y: 10 }, { x: 2, y: 12 }], // biome-ignore format: one line
      ]),
    );
    expect(data.columns).toEqual([
      [0, 1, 2, 2],
      [0, null, 20, 21],
      [null, 10, null, 12],
    ]);
  });

  it('stacks, drawing the highest first and saying the parts', () => {
    const data = chartData(chart([[{ x: 0, y: 3 }], [{ x: 0, y: 4 }]], true));
    expect(data.series.map(({ label }) => label)).toEqual(['s1', 's0']);
    expect(data.columns).toEqual([[0], [7], [3]]);
    expect(data.values).toEqual([[4], [3]]);
  });

  it('turns what is not finite into gaps and thins long series', () => {
    const data = chartData(chart([[{ x: 0, y: Number.NaN }, { x: Number.POSITIVE_INFINITY, y: 1 }]])); // biome-ignore format: one line
    expect(data.columns).toEqual([[0], [null]]);
    const long = chart([Array.from({ length: 100_000 }, (_, x) => ({ x, y: x }))]);
    expect(chartData(long).columns[0]!.length).toBeLessThanOrEqual(20_000);
  });
});

describe('writing', () => {
  it('leaves what was there when the disk is full or the pieces fail', () => {
    const folder = temporaryFolder();
    const path = join(folder, 'report');
    writeReport(path, ['old']);
    const failing = function* (): Generator<string> {
      yield 'x'.repeat(1_000_000);
      throw Object.assign(new Error('no room'), { code: 'ENOSPC' });
    };
    expect(() => writeReport(path, failing())).toThrow(expect.objectContaining({ code: 'DISK_FULL' }));
    expect(readFileSync(path, 'utf8')).toBe('old');
    expect(readdirSync(folder)).toEqual(['report']);
  });

  it.skipIf(process.platform !== 'linux')('names a full disk', () => {
    expect(() => writeReport('/dev/full', ['x'])).toThrow(expect.objectContaining({ code: 'DISK_FULL' }));
  });

  it('names a folder that is not there', () => {
    const path = join(temporaryFolder(), 'none', 'report');
    expect(() => writeReport(path, ['x'])).toThrow(expect.objectContaining({ code: 'WRITE_FAILED' }));
    expect(() => checkReportPath(path)).toThrow(expect.objectContaining({ code: 'WRITE_FAILED' }));
  });

  it('leaves nothing behind when it only looks', () => {
    const folder = temporaryFolder();
    const path = join(folder, 'report');
    writeReport(path, ['old']);
    checkReportPath(path);
    checkReportPath(join(folder, 'other'));
    expect(readdirSync(folder)).toEqual(['report']);
    expect(readFileSync(path, 'utf8')).toBe('old');
  });
});
