/**
 * What is known of the disks of this machine: one file per device in the user's cache folder.
 *
 * Whatever is wrong with such a file, it is ignored with a sentence: it can always be measured again. It is written
 * beside its place and renamed, so that a reader never meets half of one.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { READ_ENGINES } from '../engine/stages.ts';
import type { DiskMeasurement, DiskPoint } from './measure.ts';
import { DISK_IO_MODES } from './rig.ts';

const VERSION = 1;
/** Far more than any measurement has. */
const FILE_BYTES_MAX = 4 * 1024 ** 2;

/** The user's cache folder: $XDG_CACHE_HOME, or the system's custom. */
export function cacheFolder(): string {
  const { XDG_CACHE_HOME: wanted } = process.env;
  if (wanted !== undefined && isAbsolute(wanted)) return join(wanted, 'moestream');
  const usual = process.platform === 'darwin' ? ['Library', 'Caches'] : ['.cache'];
  return join(homedir(), ...usual, 'moestream');
}

export function measurementPath(device: string): string {
  return join(cacheFolder(), 'disks', `${device}.json`);
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

function removeIfThere(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch {
    // The folder itself is no folder: nothing was written.
  }
}

/** Keeps a measurement for its device, in the place of the one before. False, and a sentence, where that fails. */
export function storeMeasurement(measurement: DiskMeasurement, notice: (sentence: string) => void): boolean {
  const path = measurementPath(measurement.device);
  const partial = `${path}.${process.pid}.part`;
  try {
    mkdirSync(join(cacheFolder(), 'disks'), { recursive: true });
    writeFileSync(partial, `${JSON.stringify({ version: VERSION, ...measurement }, undefined, 1)}\n`);
    renameSync(partial, path);
    return true;
  } catch (error) {
    removeIfThere(partial);
    notice(`the result is not kept: ${reasonOf(error)}`);
    return false;
  }
}

/** The measurement of a device, or undefined when there is none that can be used. */
export function storedMeasurement(
  device: string,
  notice: (sentence: string) => void,
): DiskMeasurement | undefined {
  const path = measurementPath(device);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') notice(`${path} is ignored: ${reasonOf(error)}`);
    return undefined;
  }
  const problem = (sentence: string): undefined => {
    notice(`${path} is ignored: ${sentence}; \`moestream diskbench\` writes a new one`);
  };
  if (text.length > FILE_BYTES_MAX) return problem('it is too large');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return problem('it is no JSON');
  }
  if (!isObject(value)) return problem('it is no measurement');
  if (value.version !== VERSION) return problem(`it is of version ${String(value.version).slice(0, 20)}`);
  if (!isMeasurement(value)) return problem('it is no measurement');
  if (value.device !== device) return problem('it is of another device');
  return value;
}

type Fields = Record<string, unknown>;

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isAmount(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0;
}

const POINT_AMOUNTS: readonly (keyof DiskPoint)[] = [
  'split',
  'readers',
  'window',
  'layers',
  'bytesPerSecond',
  'slowestBytesPerSecond',
  'fastestBytesPerSecond',
  'p50Millis',
  'p99Millis',
  'cpuSecondsPerGigabyte',
];

function isPoint(value: unknown): value is DiskPoint {
  if (!isObject(value)) return false;
  const { engine, io, amplification, arrivalMillis, cached, computeKept } = value;
  return (
    READ_ENGINES.some((each) => each === engine) &&
    DISK_IO_MODES.some((each) => each === io) &&
    POINT_AMOUNTS.every((name) => isAmount(value[name])) &&
    (amplification === null || isAmount(amplification)) &&
    (computeKept === null || isAmount(computeKept)) &&
    Array.isArray(arrivalMillis) &&
    arrivalMillis.every(isAmount) &&
    typeof cached === 'boolean'
  );
}

function isMeasurement(value: Fields): value is Fields & DiskMeasurement {
  const { device, path, measuredAt, points, computing, hugePageShare } = value;
  return (
    [device, path, measuredAt].every((text) => typeof text === 'string') &&
    Number.isFinite(Date.parse(String(measuredAt))) &&
    ['totalBytes', 'expertBytes', 'expertsPerLayer', 'cores'].every((name) => isAmount(value[name])) &&
    typeof computing === 'boolean' &&
    (hugePageShare === null || isAmount(hugePageShare)) &&
    Array.isArray(points) &&
    points.every(isPoint)
  );
}

/** The fastest setting that the disk itself answered, direct ones first. */
export function bestPoint(points: readonly DiskPoint[]): DiskPoint | undefined {
  const honest = points.filter((point) => !point.cached && point.bytesPerSecond > 0);
  const direct = honest.filter((point) => point.io === 'direct');
  return (direct.length > 0 ? direct : honest).reduce<DiskPoint | undefined>(
    (best, point) => (best === undefined || point.bytesPerSecond > best.bytesPerSecond ? point : best),
    undefined,
  );
}
