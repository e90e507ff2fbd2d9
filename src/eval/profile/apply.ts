/**
 * A stored profile under what the caller has given: explicit settings win, the profile fills in, defaults do the rest.
 *
 * A profile was found as a whole. Its window was good with its readers and split, and its chunk fitted its memory, so
 * such a setting is left out when one that it leans on was given otherwise: an explicit flag must never fail because of
 * a profile that nobody thought of.
 */
import type { OpenOptions } from '../../engine/options.ts';
import { defaultBudgetBytes } from '../../pipeline/budget.ts';
import { parseBytes } from '../../pipeline/memory.ts';
import { TUNABLE_NAMES, type TunableName, type TunableSettings } from '../settings.ts';
import { profileKey } from './key.ts';
import { entryFor, type ProfileEntry, profilePath, storedEntries } from './store.ts';

/** What a profile's setting leans on. */
const LEANS_ON: Partial<Record<TunableName, readonly (keyof OpenOptions)[]>> = {
  window: ['readers', 'split', 'io', 'ioEngine', 'queueDepth'],
  queueDepth: ['io', 'ioEngine', 'split'],
  ioEngine: ['io'],
  lookahead: ['predict'],
  chunk: ['contextLength', 'precision', 'kvType', 'expertsPerToken', 'threads'],
};

export interface LeftOut {
  readonly name: TunableName;
  readonly because: string;
}

export interface AppliedProfile {
  /** What was given, and the profile's settings for the rest. */
  readonly options: OpenOptions;
  readonly entry: ProfileEntry | undefined;
  /** The file that the entry is from. */
  readonly path: string | undefined;
  readonly used: readonly TunableName[];
  readonly leftOut: readonly LeftOut[];
}

/** Looks for a profile of the model and lays it under the options. Says once, by `onNotice`, when it does. */
export function applyProfile(given: OpenOptions): AppliedProfile {
  const nothing = { options: given, entry: undefined, path: undefined, used: [], leftOut: [] };
  const key = profileKey(given.model);
  if (key === undefined) return nothing;
  const notice = given.onNotice ?? (() => {});
  const entries = storedEntries(key, notice);
  if (entries.length === 0) return nothing;
  const budgetBytes = budgetOf(given.memory);
  const entry = entryFor(entries, budgetBytes);
  if (entry === undefined) return nothing;
  const { options, used, leftOut } = layUnder(given, entry, budgetBytes);
  if (used.length > 0) {
    notice(
      `using the profile of ${entry.tunedAt.slice(0, 10)}: ${used.map((name) => `${name} ${entry.settings[name]}`).join(', ')} (--no-profile leaves it out)`,
    );
  }
  return { options, entry, path: profilePath(key), used, leftOut };
}

function budgetOf(memory: OpenOptions['memory']): number {
  if (memory === undefined) return defaultBudgetBytes();
  return typeof memory === 'string' ? parseBytes(memory) : memory;
}

function layUnder(
  given: OpenOptions,
  entry: ProfileEntry,
  budgetBytes: number,
): Pick<AppliedProfile, 'options' | 'used' | 'leftOut'> {
  const used: TunableName[] = [];
  const leftOut: LeftOut[] = [];
  const settings: Record<string, unknown> = {};
  for (const name of TUNABLE_NAMES) {
    const value = entry.settings[name];
    if (value === undefined) continue;
    const because = reasonAgainst(name, given, entry, budgetBytes);
    if (because === undefined) {
      settings[name] = value;
      used.push(name);
    } else leftOut.push({ name, because });
  }
  const explicit = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  return { options: { ...(settings as TunableSettings), ...explicit, model: given.model }, used, leftOut };
}

function reasonAgainst(
  name: TunableName,
  given: OpenOptions,
  entry: ProfileEntry,
  budgetBytes: number,
): string | undefined {
  if (given[name] !== undefined) return `${name} is given`;
  const other = (LEANS_ON[name] ?? []).find((each) => given[each] !== undefined);
  if (other !== undefined) return `${other} is given`;
  if (name === 'chunk' && budgetBytes < entry.budgetBytes) return 'the memory is less than it was tuned for';
  return undefined;
}
