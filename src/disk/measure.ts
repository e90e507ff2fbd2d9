/**
 * Measuring a disk as the engine uses it.
 *
 * A disk that other work shares changes from minute to minute, so every setting is measured several times, in rounds, and
 * every second round goes through the settings backwards; what is reported is the median of the rounds. A number that a
 * cache has answered is marked, and nothing is chosen by it.
 */
import { availableParallelism, loadavg } from 'node:os';
import { READ_ENGINES, type ReadEngine } from '../engine/stages.ts';
import { MoestreamError } from '../errors.ts';
import { loadIo } from '../native.ts';
import { SPLIT_MAX } from '../pipeline/expert-layout.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { deviceOf } from './device.ts';
import { DISK_IO_MODES, type DiskIoMode, type DiskSetting, Rig, type Turn } from './rig.ts';
import { Spinners } from './spinners.ts';
import { expertBytesOf, type Workload, workloadBytes } from './workload.ts';

/** What one setting came to. */
export interface DiskPoint extends DiskSetting {
  readonly layers: number;
  /** Median of the rounds, and the slowest and fastest of them. */
  readonly bytesPerSecond: number;
  readonly slowestBytesPerSecond: number;
  readonly fastestBytesPerSecond: number;
  /** Of the time from asking for a layer's experts to having all of them. */
  readonly p50Millis: number;
  readonly p99Millis: number;
  /** All threads of the process. */
  readonly cpuSecondsPerGigabyte: number;
  /** Bytes that came from the disk by bytes that were wanted; null where the system does not count them. */
  readonly amplification: number | null;
  /** When the i-th expert of a layer had arrived, mean. */
  readonly arrivalMillis: readonly number[];
  /** A cache has answered, wholly or in part. */
  readonly cached: boolean;
  /** With computing processes: the share of their speed that the reads left them. */
  readonly computeKept: number | null;
}

export interface DiskMeasurement {
  readonly device: string;
  readonly path: string;
  readonly measuredAt: string;
  readonly totalBytes: number;
  readonly expertBytes: number;
  readonly expertsPerLayer: number;
  readonly cores: number;
  readonly computing: boolean;
  /** The share of the slab that is in huge pages; null where the system does not say. */
  readonly hugePageShare: number | null;
  readonly points: readonly DiskPoint[];
}

export interface MeasureOptions {
  readonly settings: readonly DiskSetting[];
  /** Time per setting, over all rounds. */
  readonly secondsPerPoint: number;
  readonly rounds: number;
  /** Keep every core computing meanwhile. */
  readonly computing: boolean;
  readonly signal?: AbortSignal;
  readonly notice: (sentence: string) => void;
  readonly onProgress?: (done: number, total: number) => void;
}

/** More threads than this are not kept waiting for their next turn: they are started anew for each. */
const THREADS_KEPT_MAX = 128;
/** Less from the disk than this share of what was wanted: a cache has answered. */
const CACHED_AMPLIFICATION = 0.9;
/** Buffered reads are never that much faster than direct ones of the same disk. */
const CACHED_SPEED_UP = 1.25;
/** A drive's own cache, or the host's of a virtual one, may hold a file that is smaller than this. */
const SMALL_BYTES = 4e9;
const BUSY_LOAD_PER_CORE = 0.5;
/** A last round that is so much faster than the first: the disk was fetching what nobody had read before. */
const WARMING_UP = 1.3;

export const DISK_SPLITS = [1, 2, 3, 4, 5, 8] as const;

const of = (
  engine: ReadEngine,
  split: number,
  readers: number,
  window: number,
  io: DiskIoMode = 'direct',
): DiskSetting => ({ engine, io, split, readers: engine === 'uring' ? 1 : readers, window });

/** What is worth knowing of any disk. */
export function defaultSettings(quick: boolean): readonly DiskSetting[] {
  const essential = [
    of('uring', 1, 1, 0),
    of('uring', 4, 1, 0),
    of('uring', 4, 1, 2),
    of('threads', 1, 16, 0),
    of('threads', 4, 16, 0),
    of('threads', 4, 16, 2),
    of('threads', 4, 16, 0, 'buffered'),
  ];
  if (quick) return essential;
  return [
    ...[1, 2, 3, 4, 5, 8].map((split) => of('uring', split, 1, 0)),
    ...[1, 2, 4].map((window) => of('uring', 1, 1, window)),
    of('uring', 4, 1, 2),
    ...[1, 2, 4, 8].map((split) => of('threads', split, 16, 0)),
    of('threads', 1, 1, 0),
    of('threads', 4, 4, 0),
    ...[1, 4].map((split) => of('threads', split, 16, 2)),
    of('threads', 4, 16, 0, 'buffered'),
  ];
}

export interface SettingLists {
  readonly engines?: readonly ReadEngine[];
  readonly io?: readonly DiskIoMode[];
  readonly splits?: readonly number[];
  readonly readers?: readonly number[];
  readonly windows?: readonly number[];
}

function checked(name: string, values: readonly number[], low: number, high: number): readonly number[] {
  const wrong = values.find((value) => !Number.isInteger(value) || value < low || value > high);
  if (wrong === undefined) return values;
  throw new MoestreamError('USAGE', `${name} ${wrong}: expected integers from ${low} to ${high}`);
}

/** Every combination of the lists; one that was not given has its usual values. */
export function combinedSettings(lists: SettingLists): readonly DiskSetting[] {
  const splits = checked('split', lists.splits ?? [1, 4], 1, SPLIT_MAX);
  const readers = checked('readers', lists.readers ?? [16], 1, 64);
  const windows = checked('window', lists.windows ?? [0], 0, 256);
  const combined: DiskSetting[] = [];
  for (const engine of lists.engines ?? READ_ENGINES) {
    for (const io of lists.io ?? ['direct']) {
      for (const split of splits) {
        for (const window of windows) {
          for (const count of engine === 'uring' ? [1] : readers) {
            combined.push(of(engine, split, count, window, io));
          }
        }
      }
    }
  }
  return combined;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!;
}

interface Rounds {
  readonly turns: Turn[];
  readonly computeRates: number[];
}

/** `idleRates` is how fast the computing processes are while nothing is read. */
export function pointOf(
  setting: DiskSetting,
  turns: readonly Turn[],
  computeRates: readonly number[] = [],
  idleRates: readonly number[] = [],
): DiskPoint {
  const speeds = turns.map((turn) => turn.bytes / turn.seconds);
  const layerMillis = turns.flatMap((turn) => turn.layerMillis).sort((a, b) => a - b);
  const wanted = turns.reduce((sum, turn) => sum + turn.bytes, 0);
  const counted = turns.every((turn) => turn.diskBytes !== undefined);
  const fromDisk = turns.reduce((sum, turn) => sum + (turn.diskBytes ?? 0), 0);
  const amplification = counted ? fromDisk / wanted : null;
  return {
    ...setting,
    layers: layerMillis.length,
    bytesPerSecond: median(speeds),
    slowestBytesPerSecond: Math.min(...speeds),
    fastestBytesPerSecond: Math.max(...speeds),
    p50Millis: percentile(layerMillis, 0.5),
    p99Millis: percentile(layerMillis, 0.99),
    cpuSecondsPerGigabyte: median(turns.map((turn) => (turn.cpuSeconds * 1e9) / turn.bytes)),
    amplification,
    arrivalMillis: turns[0]!.arrivalMillis.map((_, index) =>
      median(turns.map((turn) => turn.arrivalMillis[index]!)),
    ),
    cached: amplification !== null && amplification < CACHED_AMPLIFICATION,
    computeKept: computeRates.length === 0 ? null : median(computeRates) / median(idleRates),
  };
}

/** Buffered points that are faster than any direct one came from memory, whatever the system counts. */
function markImplausible(points: readonly DiskPoint[]): readonly DiskPoint[] {
  const direct = points.filter((point) => point.io === 'direct').map((point) => point.bytesPerSecond);
  if (direct.length === 0) return points;
  const most = Math.max(...direct) * CACHED_SPEED_UP;
  return points.map((point) =>
    point.io === 'buffered' && point.bytesPerSecond > most ? { ...point, cached: true } : point,
  );
}

function warnBefore(workload: Workload, notice: (sentence: string) => void): void {
  const [load = 0] = loadavg();
  const cores = availableParallelism();
  if (load > BUSY_LOAD_PER_CORE * cores) {
    notice(`the machine is busy (load ${load.toFixed(1)} on ${cores} cores): the numbers are lower bounds`);
  }
  const bytes = workloadBytes(workload);
  if (bytes < SMALL_BYTES) {
    notice(
      `${formatBytes(bytes)} of experts are little: the drive's own cache may answer; a larger file tells more`,
    );
  }
}

function warnAfter(points: readonly DiskPoint[], notice: (sentence: string) => void): void {
  const cached = points.filter((point) => point.cached);
  if (cached.length === 0) return;
  const modes = DISK_IO_MODES.filter((mode) => cached.some((point) => point.io === mode));
  notice(
    `the page cache has answered, not the disk (${modes.join(' and ')}, marked *): the file is in memory, at least in part`,
  );
}

/** Virtual disks are slow where they have not been read yet. */
function warnWarmingUp(found: readonly Rounds[], notice: (sentence: string) => void): void {
  const gains = found.map(({ turns }) => {
    const [first, last] = [turns[0]!, turns.at(-1)!];
    return last.bytes / last.seconds / (first.bytes / first.seconds);
  });
  if (median(gains) < WARMING_UP) return;
  notice(
    `the last round was ${median(gains).toFixed(1)} times as fast as the first: the disk warms up, measure again`,
  );
}

/** Leaves out the settings that this system refuses, and says so. */
function possibleSettings(rig: Rig, { settings, notice }: MeasureOptions): readonly DiskSetting[] {
  const io = loadIo();
  const refusal = io.uringRefusal();
  if (refusal !== 0 && settings.some((setting) => setting.engine === 'uring')) {
    notice(
      `without io_uring (${process.platform === 'linux' ? io.errnoName(refusal) : 'only Linux has it'})`,
    );
  }
  const refused = DISK_IO_MODES.filter((mode) => {
    if (!settings.some((setting) => setting.io === mode)) return false;
    try {
      rig.openFiles(mode);
      return false;
    } catch (error) {
      if (mode === 'buffered' || !MoestreamError.is(error)) throw error;
      notice(`without direct reads: ${error.message}`);
      return true;
    }
  });
  const possible = settings.filter(
    (setting) => !refused.includes(setting.io) && (refusal === 0 || setting.engine !== 'uring'),
  );
  if (possible.length > 0) return possible;
  throw new MoestreamError('READ_FAILED', 'this system refuses every way to read that was asked for', {
    hint: 'Leave out --engines and --io.',
  });
}

async function runRounds(
  rig: Rig,
  settings: readonly DiskSetting[],
  { secondsPerPoint, rounds, signal, onProgress }: MeasureOptions,
  spinners: Spinners | undefined,
): Promise<{ found: readonly Rounds[]; idleRates: readonly number[] }> {
  const found: readonly Rounds[] = settings.map(() => ({ turns: [], computeRates: [] }));
  const idleRates: number[] = [];
  const seconds = secondsPerPoint / rounds;
  const perStation = new Map(settings.map((each) => [rig.stationKey(each), rig.threadsOf(each)]));
  const threads = [...perStation.values()].reduce((sum, count) => sum + count, 0);
  let done = 0;
  for (let round = 0; round < rounds; round++) {
    if (spinners !== undefined) {
      await spinners.mark();
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
      idleRates.push(await spinners.rate());
    }
    for (let step = 0; step < settings.length; step++) {
      const index = round % 2 === 0 ? step : settings.length - 1 - step;
      await spinners?.mark();
      found[index]!.turns.push(await rig.turn(settings[index]!, seconds, signal));
      if (spinners !== undefined) found[index]!.computeRates.push(await spinners.rate());
      if (threads > THREADS_KEPT_MAX) await rig.endStations();
      onProgress?.(++done, rounds * settings.length);
    }
  }
  return { found, idleRates };
}

/** Measures every setting. Takes about `secondsPerPoint` for each, and memory for four layers of experts. */
export async function measureDisk(workload: Workload, options: MeasureOptions): Promise<DiskMeasurement> {
  const { notice } = options;
  warnBefore(workload, notice);
  const rig = new Rig(loadIo(), workload, notice);
  let spinners: Spinners | undefined;
  try {
    const settings = possibleSettings(rig, options);
    if (options.computing) spinners = await Spinners.start();
    const { found, idleRates } = await runRounds(rig, settings, options, spinners);
    const points = markImplausible(
      settings.map((setting, index) =>
        pointOf(setting, found[index]!.turns, found[index]!.computeRates, idleRates),
      ),
    );
    warnAfter(points, notice);
    warnWarmingUp(found, notice);
    return {
      device: deviceOf(workload.paths.at(-1)!),
      path: workload.paths[0]!,
      measuredAt: new Date().toISOString(),
      totalBytes: workloadBytes(workload),
      expertBytes: Math.max(...workload.layers.map(expertBytesOf)),
      expertsPerLayer: workload.expertsPerLayer,
      cores: availableParallelism(),
      computing: options.computing,
      hugePageShare: rig.hugePageBytes < 0 ? null : rig.hugePageBytes / rig.slabBytes,
      points,
    };
  } finally {
    spinners?.end();
    await rig.close();
  }
}
