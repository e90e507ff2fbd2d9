/**
 * What `moestream tune` has found: one file per machine, disk, model and version in the user's cache folder, with an entry
 * per memory budget.
 *
 * A profile is read by every command that opens an engine, so whatever is wrong with the file, it is ignored with a
 * sentence: it can be tuned again, and nothing works worse without it. It is written beside its place, synced and renamed,
 * under a lock, so that no reader meets half of one and no tuner loses another's entry.
 */
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { cacheFolder } from '../../disk/store.ts';
import { settingsOf } from '../../engine/options.ts';
import { MoestreamError } from '../../errors.ts';
import { codeOf, writeError } from '../../pack/disk.ts';
import { takeFileLock } from '../../pack/lock.ts';
import { syncFolder } from '../line-log.ts';
import { type TunableSettings, tunableSchema } from '../settings.ts';
import { keyDigest, keySchema, type ProfileKey } from './key.ts';

const FORMAT = 'moestream-profile';
const VERSION = 1;
const FILE_BYTES_MAX = 256 * 1024;
const ENTRIES_MAX = 32;
/** A profile of another budget than this many times ours, or this part of it, says nothing about ours. */
const BUDGET_FACTOR_MAX = 1.5;

const ratio = z.number().positive();

const entrySchema = z.strictObject({
  budgetBytes: z.int().positive(),
  /** Empty when the defaults won. */
  settings: tunableSchema,
  tunedAt: z.iso.datetime(),
  score: z.enum(['decode', 'prefill', 'total']),
  /** How many times faster than the defaults, by the confirmation. Null when the defaults won. */
  gain: z.strictObject({ ratio, low: ratio, high: ratio, p99Ratio: ratio }).nullable(),
});

const fileSchema = z.strictObject({
  format: z.literal(FORMAT),
  version: z.literal(VERSION),
  key: keySchema,
  entries: z.array(entrySchema).max(ENTRIES_MAX),
});

export interface ProfileEntry extends Omit<z.infer<typeof entrySchema>, 'settings'> {
  readonly settings: TunableSettings;
}

export function profilePath(key: ProfileKey): string {
  return join(cacheFolder(), 'profiles', `${keyDigest(key)}.json`);
}

/** Every entry of a key, or none where there is no file that can be used. */
export function storedEntries(key: ProfileKey, notice: (sentence: string) => void): readonly ProfileEntry[] {
  const path = profilePath(key);
  const ignored = (problem: string): readonly ProfileEntry[] => {
    notice(`the profile ${path} is ignored: ${problem}; \`moestream tune\` writes a new one`);
    return [];
  };
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    return codeOf(error) === 'ENOENT' ? [] : ignored(`it cannot be read (${codeOf(error)})`);
  }
  if (text.length > FILE_BYTES_MAX) return ignored('it is too large');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return ignored('it is no JSON');
  }
  const found = fileSchema.safeParse(value);
  if (!found.success) return ignored(problemIn(found.error));
  if (keyDigest(found.data.key) !== keyDigest(key)) return ignored('it is of another machine, disk or model');
  const entries = found.data.entries as readonly ProfileEntry[];
  const wrong = entries.map(rangeProblem).find((problem) => problem !== undefined);
  return wrong === undefined ? entries : ignored(wrong);
}

/** The first thing that a schema says, in one sentence. */
export function problemIn(error: z.ZodError): string {
  const [issue] = error.issues;
  if (issue === undefined) return 'it does not fit';
  const place = issue.path.length === 0 ? '' : `${issue.path.map(String).join('.')}: `;
  return `${place}${issue.message}`.slice(0, 200);
}

/** The schema knows kinds of values; the engine knows which of them it can be set to. */
function rangeProblem(entry: ProfileEntry): string | undefined {
  try {
    settingsOf({ model: 'any', memory: entry.budgetBytes, ...entry.settings });
    return undefined;
  } catch (error) {
    if (MoestreamError.is(error) && error.code === 'USAGE') return error.message;
    throw error;
  }
}

/** The entry for a budget: the nearest, if it is near enough. */
export function entryFor(entries: readonly ProfileEntry[], budgetBytes: number): ProfileEntry | undefined {
  const distance = (entry: ProfileEntry): number => Math.abs(Math.log(entry.budgetBytes / budgetBytes));
  const near = entries.filter((entry) => distance(entry) <= Math.log(BUDGET_FACTOR_MAX));
  return near.sort((a, b) => distance(a) - distance(b))[0];
}

/** Keeps an entry in the place of the one of the same budget. Throws WRITE_FAILED or LOG_REFUSED. */
export function storeEntry(key: ProfileKey, entry: ProfileEntry, notice: (sentence: string) => void): string {
  const path = profilePath(key);
  try {
    mkdirSync(dirname(path), { recursive: true });
  } catch (cause) {
    throw writeError(dirname(path), cause);
  }
  const release = takeFileLock(`${path}.lock`, { code: 'LOG_REFUSED', doing: 'storing this profile' });
  try {
    const others = storedEntries(key, notice).filter((each) => each.budgetBytes !== entry.budgetBytes);
    const entries = [entry, ...others].slice(0, ENTRIES_MAX);
    replaceFile(
      path,
      `${JSON.stringify({ format: FORMAT, version: VERSION, key, entries }, undefined, 1)}\n`,
    );
  } finally {
    release();
  }
  return path;
}

/** The whole new file or the whole old one, whenever the power goes. */
export function replaceFile(path: string, text: string): void {
  const partial = `${path}.${process.pid}.part`;
  try {
    const fd = openSync(partial, 'w', 0o644);
    try {
      const bytes = Buffer.from(text);
      for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(partial, path);
    syncFolder(dirname(path));
  } catch (cause) {
    rmSync(partial, { force: true });
    throw writeError(path, cause);
  }
}
