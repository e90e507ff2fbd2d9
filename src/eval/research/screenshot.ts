/** A page as a picture, by headless Chromium where there is one. */
import { spawn } from 'node:child_process';
import { accessSync, constants, existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { MoestreamError } from '../../errors.ts';
import { writeReport } from '../../report/write.ts';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome', 'chrome'];
const MAC_PLACES = [
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
  '/Applications/Chromium.app/Contents/MacOS/Chromium',
];
const TIMEOUT_MILLIS = 60_000;
const WIDTH = 1200;

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** The browser that $CHROMIUM names, or the first that is found. */
export function findBrowser(): string | undefined {
  const { CHROMIUM: wanted, PATH = '' } = process.env;
  if (wanted !== undefined && wanted !== '') return wanted;
  const folders = PATH.split(delimiter).filter((folder) => folder !== '');
  const places = NAMES.flatMap((name) => folders.map((folder) => join(folder, name)));
  return [...places, ...(process.platform === 'darwin' ? MAC_PLACES : [])].find(isExecutable);
}

/** Draws a page into a PNG. Throws RUN_FAILED when there is no browser or it does not do it. */
export async function screenshot(page: string, png: string, height: number): Promise<void> {
  const browser = findBrowser();
  if (browser === undefined) {
    throw new MoestreamError('RUN_FAILED', `no Chromium was found: ${png} is not drawn`, {
      hint: 'Install Chromium or Chrome, or name one in $CHROMIUM. The HTML report needs none of them.',
    });
  }
  const profile = mkdtempSync(join(tmpdir(), 'moestream-browser-'));
  const html = join(profile, 'page.html');
  const flags = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--hide-scrollbars',
    '--virtual-time-budget=3000',
    // A tall page on a busy machine is otherwise drawn with holes.
    '--run-all-compositor-stages-before-draw',
    `--user-data-dir=${profile}`,
    `--window-size=${WIDTH},${height}`,
    `--screenshot=${resolve(png)}`,
    pathToFileURL(html).href,
  ];
  rmSync(png, { force: true });
  try {
    writeReport(html, [page]);
    const words = await ended(browser, flags);
    if (!existsSync(png)) {
      throw new MoestreamError(
        'RUN_FAILED',
        `${browser} drew no ${png}: ${words.trim().split('\n').at(-1) ?? ''}`,
      );
    }
  } finally {
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

function ended(browser: string, flags: readonly string[]): Promise<string> {
  return new Promise((done, reject) => {
    const child = spawn(browser, flags, {
      stdio: ['ignore', 'ignore', 'pipe'],
      timeout: TIMEOUT_MILLIS,
      killSignal: 'SIGKILL',
    });
    let words = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      words = (words + text).slice(-2000);
    });
    child.once('error', (cause) =>
      reject(new MoestreamError('RUN_FAILED', `${browser} does not start: ${cause.message}`, { cause })),
    );
    child.once('close', () => done(words));
  });
}
