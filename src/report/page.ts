/**
 * One report as one HTML file that needs nothing else: no network, no second file, no server.
 *
 * uPlot's script and style are taken from the installed package and written into the page; the page's content security
 * policy allows those two scripts by their hashes, inline styles, and nothing else. Light and dark follow the reader's
 * system, paper is light.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { invariant } from '../errors.ts';
import { type Block, renderBlock } from './blocks.ts';
import { type ChartData, chartData } from './charts.ts';
import { embedJson, escapeHtml } from './html.ts';
import { STYLE } from './style.ts';

export interface Section {
  readonly title: string;
  readonly blocks: readonly Block[];
}

export interface Page {
  readonly title: string;
  /** One line under the title: what was run, on what. */
  readonly subtitle?: string;
  readonly sections: readonly Section[];
  /** Last line: who wrote it, when. */
  readonly footer?: string;
}

/** Scripts end at the first end tag, whatever stands around it. */
function inlineScript(source: string, attributes: string): { readonly html: string; readonly hash: string } {
  const body = source.replace(/^\/\/# sourceMappingURL=.*$/m, '');
  invariant(!/<\/script|<!--/i.test(body), 'a script that is written into a page holds no end tag');
  const hash = createHash('sha256').update(body).digest('base64');
  return { html: `<script${attributes}>${body}</script>`, hash: `'sha256-${hash}'` };
}

interface Parts {
  readonly style: string;
  readonly scripts: readonly { readonly html: string; readonly hash: string }[];
}

let loaded: Parts | undefined;

/** What every page has in it; read once. */
function parts(): Parts {
  const { resolve } = createRequire(import.meta.url);
  loaded ??= {
    style: readFileSync(resolve('uplot/dist/uPlot.min.css'), 'utf8') + STYLE,
    scripts: [
      inlineScript(readFileSync(resolve('uplot/dist/uPlot.iife.min.js'), 'utf8'), ''),
      inlineScript(readFileSync(new URL('./client.js', import.meta.url), 'utf8'), ' type="module"'),
    ],
  };
  return loaded;
}

/** The whole file. */
export function renderPage(page: Page): string {
  const { style, scripts } = parts();
  const charts: ChartData[] = [];
  const sections = page.sections.map(({ title, blocks }) => {
    const html = blocks.map((block) => {
      if (block.kind === 'chart') charts.push(chartData(block));
      return renderBlock(block, charts.length - 1);
    });
    return `<section><h2>${escapeHtml(title)}</h2>${html.join('\n')}</section>`;
  });
  const policy = `default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; script-src ${scripts.map((each) => each.hash).join(' ')}`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeHtml(page.title)}</title>
<style>${style}</style>
</head>
<body>
<header><h1>${escapeHtml(page.title)}</h1>${line(page.subtitle)}</header>
<noscript><p class="note">Charts need JavaScript; everything else on this page does not.</p></noscript>
<main>
${sections.join('\n')}
</main>
<footer>${line(page.footer)}</footer>
<script type="application/json" id="charts">${embedJson(charts)}</script>
${scripts.map((each) => each.html).join('\n')}
</body>
</html>
`;
}

const line = (text: string | undefined): string => (text === undefined ? '' : `<p>${escapeHtml(text)}</p>`);
