/** A real browser for the pages that we write, where one is installed. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { temporaryFolder } from './folder.js';

const PLACES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

/** Path of a Chromium, or undefined, which is said. */
export function findChromium(): string | undefined {
  const found = process.env.CHROMIUM ?? PLACES.find((path) => existsSync(path));
  if (found === undefined) {
    process.stderr.write(
      'no Chromium is installed (CHROMIUM names one): pages are not opened in a browser\n',
    );
  }
  return found;
}

export interface OpenedPage {
  /** The document after its scripts have run. */
  readonly dom: string;
  /** What the page wrote to its console, errors of scripts and of the content security policy with it. */
  readonly console: readonly string[];
}

export function openPage(chromium: string, path: string): OpenedPage {
  const quiet = ['--disable-background-networking', '--disable-component-update', '--disable-sync'];
  const ended = spawnSync(
    chromium,
    [
      ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', ...quiet],
      ...[`--user-data-dir=${temporaryFolder()}`, '--enable-logging=stderr', '--v=0'],
      ...['--virtual-time-budget=5000', '--window-size=1200,900', '--dump-dom', pathToFileURL(path).href],
    ],
    { encoding: 'utf8', timeout: 50_000, maxBuffer: 256 * 1024 ** 2 },
  );
  if (ended.status !== 0) throw new Error(`Chromium ended with ${ended.status}: ${ended.stderr}`);
  const console = ended.stderr.split('\n').filter((line) => line.includes(':CONSOLE'));
  return { dom: ended.stdout, console };
}
