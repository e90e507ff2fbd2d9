/** `moestream diskbench`: how fast the disk is, read as the engine reads it, and what of its settings suits it. */
import { fileURLToPath } from 'node:url';
import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  combinedSettings,
  type DiskMeasurement,
  type DiskPoint,
  defaultSettings,
  measureDisk,
  type SettingLists,
} from '../disk/measure.ts';
import { DISK_IO_MODES, type DiskIoMode, type DiskSetting } from '../disk/rig.ts';
import { bestPoint, measurementPath, storeMeasurement } from '../disk/store.ts';
import { openWorkload, type Workload } from '../disk/workload.ts';
import { READ_ENGINES, type ReadEngine } from '../engine/stages.ts';
import { MoestreamError } from '../errors.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { integer, number, size } from './arguments.ts';
import type { Interruption } from './interrupt.ts';
import { print, say, table } from './output.ts';

interface DiskbenchFlags {
  readonly quick?: boolean;
  readonly seconds?: number;
  readonly engines?: readonly ReadEngine[];
  readonly io?: readonly DiskIoMode[];
  readonly splits?: readonly number[];
  readonly readers?: readonly number[];
  readonly window?: readonly number[];
  readonly expertBytes?: number;
  readonly experts?: number;
  readonly compute?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const BUILT_IN_MODEL = fileURLToPath(new URL('../../models/tldr-UD_Q3_K_XL.gguf', import.meta.url));
/** What a whole run may take; starting threads and memory comes on top. */
const DEFAULT_SECONDS = 52;
const QUICK_SECONDS = 11;
const ROUNDS = 3;
/** Below this a table is squeezed. */
const WIDE_COLUMNS = 80;

function numbers(text: string): readonly number[] {
  return text.split(',').map(integer);
}

function names<T extends string>(choices: readonly T[]): (text: string) => readonly T[] {
  return (text) =>
    text.split(',').map((name) => {
      const found = choices.find((choice) => choice === name.trim());
      if (found === undefined) throw new InvalidArgumentError(`"${name}" is none of ${choices.join(', ')}.`);
      return found;
    });
}

export function addDiskbench(program: Command, interruption: () => Interruption): void {
  program
    .command('diskbench')
    .description('measure a disk as the engine reads it; writes nothing but its result')
    .argument(
      '[path]',
      'a model, or any large file, on the disk (default: the built-in model, which is small)',
    )
    .option('--quick', 'about 15 seconds instead of 60')
    .option('--seconds <n>', 'time per setting', number)
    .addOption(new Option('--engines <list>', `of ${READ_ENGINES.join(', ')}`).argParser(names(READ_ENGINES)))
    .addOption(new Option('--io <list>', `of ${DISK_IO_MODES.join(', ')}`).argParser(names(DISK_IO_MODES)))
    .option('--splits <list>', 'chunks per expert, such as 1,2,4', numbers)
    .option('--readers <list>', 'reader threads, such as 4,16', numbers)
    .option('--window <list>', 'experts under way at once, such as 0,2', numbers)
    .option('--expert-bytes <size>', 'take the file as it is, in experts of this size', size)
    .option('--experts <n>', "experts per layer (default: the model's; 10)", integer)
    .option('--compute', 'while every core computes; the result is not kept')
    .option('--json', 'as JSON')
    .option('-q, --quiet', 'nothing on stderr but errors')
    .action((path: string | undefined, flags: DiskbenchFlags) => diskbench(path, flags, interruption()));
}

function settingsOf({ engines, io, splits, readers, window, quick }: DiskbenchFlags): readonly DiskSetting[] {
  const lists: SettingLists = {
    ...(engines === undefined ? {} : { engines }),
    ...(io === undefined ? {} : { io }),
    ...(splits === undefined ? {} : { splits }),
    ...(readers === undefined ? {} : { readers }),
    ...(window === undefined ? {} : { windows: window }),
  };
  return Object.keys(lists).length === 0 ? defaultSettings(quick === true) : combinedSettings(lists);
}

function workloadOf(
  path: string | undefined,
  flags: DiskbenchFlags,
  notice: (text: string) => void,
): Workload {
  if (path === undefined) notice('measuring with the built-in model, which is small; name a larger file');
  return openWorkload(path ?? BUILT_IN_MODEL, {
    ...(flags.expertBytes === undefined ? {} : { expertBytes: flags.expertBytes }),
    ...(flags.experts === undefined ? {} : { expertsPerLayer: flags.experts }),
    notice,
  });
}

async function diskbench(
  path: string | undefined,
  flags: DiskbenchFlags,
  interruption: Interruption,
): Promise<void> {
  if (flags.seconds !== undefined && !(flags.seconds > 0 && flags.seconds <= 3600)) {
    throw new MoestreamError('USAGE', `--seconds ${flags.seconds}: expected more than 0 and at most 3600`);
  }
  const quiet = flags.quiet === true;
  const isTerminal = process.stderr.isTTY === true && !quiet;
  const clear = (): void => {
    if (isTerminal) process.stderr.write('\r\x1b[K');
  };
  const notices: string[] = [];
  const notice = (sentence: string): void => {
    notices.push(sentence);
    clear();
    if (!quiet) say(`moestream: ${sentence}`);
  };
  const workload = workloadOf(path, flags, notice);
  const settings = settingsOf(flags);
  const total = flags.quick === true ? QUICK_SECONDS : DEFAULT_SECONDS;
  let found: DiskMeasurement;
  try {
    found = await measureDisk(workload, {
      settings,
      secondsPerPoint: flags.seconds ?? total / settings.length,
      rounds: ROUNDS,
      computing: flags.compute === true,
      signal: interruption.signal,
      notice,
      onProgress: (done, all) => {
        if (isTerminal) process.stderr.write(`\rmeasuring: ${Math.floor((100 * done) / all)} %\x1b[K`);
      },
    });
  } finally {
    clear();
  }
  const kept = flags.compute === true ? false : storeMeasurement(found, notice);
  if (flags.json === true) return print(`${JSON.stringify({ ...found, notices }, undefined, 1)}\n`);
  await print(report(found, process.stdout.columns ?? WIDE_COLUMNS));
  if (kept && !quiet) say(`moestream: kept in ${measurementPath(found.device)}`);
}

/** "4.67", and a star where a cache has answered. */
const speedOf = (point: DiskPoint): string =>
  `${(point.bytesPerSecond / 1e9).toFixed(2)}${point.cached ? '*' : ''}`;

/** Bytes from the disk by bytes wanted. */
const amplificationOf = ({ amplification }: DiskPoint): string => amplification?.toFixed(2) ?? '-';

const keptOf = ({ computeKept }: DiskPoint): string =>
  computeKept === null ? '-' : `${Math.round(100 * computeKept)}%`;

const windowOf = ({ window }: DiskSetting): string => (window === 0 ? 'all' : String(window));

/** Right-aligned, as numbers stand. */
function rightAligned(rows: readonly (readonly string[])[], firstColumn: number): (string | number)[][] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row.map((cell, column) => (column < firstColumn ? cell : cell.padStart(widths[column]!))),
  );
}

export function report(found: DiskMeasurement, columns: number): string {
  const wide = columns >= WIDE_COLUMNS;
  const { points, expertsPerLayer: count, expertBytes, device, totalBytes } = found;
  const compute = found.computing;
  const head = wide
    ? ['engine', 'io', 'split', 'readers', 'window', 'GB/s', 'p50 ms', 'p99 ms', 'CPU/GB']
    : ['engine', 'io', 'spl', 'rd', 'win', 'GB/s', 'p50', 'p99', 'CPU'];
  const rows = points.map((point) => [
    point.engine,
    wide ? point.io : point.io.slice(0, 3),
    String(point.split),
    String(point.readers),
    windowOf(point),
    speedOf(point),
    point.p50Millis.toFixed(1),
    point.p99Millis.toFixed(1),
    point.cpuSecondsPerGigabyte.toFixed(3),
    compute ? keptOf(point) : amplificationOf(point),
  ]);
  const lines = [
    `${device}: layers of ${count} experts of ${formatBytes(expertBytes)}, out of ${formatBytes(totalBytes)}`,
    ...(compute ? ['while every core computes; kept is the share of its speed that remains'] : []),
    '',
    table(rightAligned([[...head, compute ? 'kept' : 'disk'], ...rows], 2)).trimEnd(),
  ];
  const windowed = points.filter((point) => point.window > 0);
  if (windowed.length > 0) lines.push('', arrivals(windowed, wide, count));
  const best = bestPoint(points);
  if (best !== undefined) lines.push('', `fastest: ${describe(best)}, ${speedOf(best)} GB/s`);
  return `${lines.join('\n')}\n`;
}

/** When experts come one after another: the first, some between, the last. */
function arrivals(points: readonly DiskPoint[], wide: boolean, count: number): string {
  const shown = Math.min(count, wide ? 6 : 4);
  const ranks = Array.from({ length: shown }, (_, step) =>
    shown === 1 ? 0 : Math.round((step * (count - 1)) / (shown - 1)),
  );
  const rows = points.map((point) => [
    describe(point),
    ...ranks.map((rank) => point.arrivalMillis[rank]!.toFixed(1)),
  ]);
  const head = ['n-th expert is there, ms', ...ranks.map((rank) => String(rank + 1))];
  return table(rightAligned([head, ...rows], 1)).trimEnd();
}

function describe({ engine, io, split, readers, window }: DiskPoint): string {
  const threads = engine === 'threads' ? ` x${readers}` : '';
  const mode = io === 'direct' ? '' : ` ${io}`;
  return `${engine}${threads}${mode} split ${split}${window === 0 ? '' : ` window ${window}`}`;
}
