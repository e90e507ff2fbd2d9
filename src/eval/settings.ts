/**
 * The settings of an engine as data: what profiles hold, what plans name, what sweeps vary.
 *
 * One table says of each setting what kind of value it takes; `satisfies` keeps it complete when the engine gets a new
 * one. Whether a value is in range is the engine's own business: `settingsOf` throws for the first that is not.
 */
import { z } from 'zod';
import {
  BACKEND_CHOICES,
  type EngineSettings,
  IO_ENGINES,
  IO_MODES,
  KV_TYPES,
  type OpenOptions,
  PRECISIONS,
} from '../engine/options.ts';
import { predictText } from '../engine/prediction.ts';
import { POLICIES } from '../pipeline/eviction.ts';

/** What an engine can be set to, without what belongs to one process. */
export type Settings = Omit<
  OpenOptions,
  'model' | 'onNotice' | 'readTimeoutMillis' | 'predict' | 'predictState' | 'trace' | 'cpuProfileFolder'
> & {
  /** Names, separated by commas. */
  readonly predict?: string;
};
export type SettingName = keyof Settings;
export type SettingValue = string | number | boolean;

const whole = z.int();
const path = z.string().max(4096);

export const SETTING_KINDS = {
  experts: path,
  embedding: path,
  lmHead: path,
  memory: z.union([z.int(), z.string().max(32)]),
  contextLength: whole,
  threads: whole,
  readers: whole,
  split: whole,
  io: z.enum(IO_MODES),
  ioEngine: z.enum(IO_ENGINES),
  window: whole,
  queueDepth: whole,
  queueSlots: whole,
  spins: whole,
  cachePolicy: z.enum(POLICIES),
  mlock: z.boolean(),
  chunk: whole,
  precision: z.enum(PRECISIONS),
  kvType: z.enum(KV_TYPES),
  backend: z.enum(BACKEND_CHOICES),
  expertsPerToken: whole,
  predict: z.string().max(100),
  lookahead: whole,
} satisfies Record<SettingName, z.ZodType>;

export const SETTING_NAMES = Object.keys(SETTING_KINDS) as SettingName[];

/** Any of the settings, and nothing else. */
export const settingsSchema = z.strictObject(SETTING_KINDS).partial();

/** Those that change speed and never a bit of the output: what a profile may hold. */
export const TUNABLE_NAMES = [
  'threads',
  'readers',
  'split',
  'io',
  'ioEngine',
  'window',
  'queueDepth',
  'queueSlots',
  'spins',
  'cachePolicy',
  'chunk',
  'predict',
  'lookahead',
] as const satisfies readonly SettingName[];

export type TunableName = (typeof TUNABLE_NAMES)[number];
export type TunableSettings = Pick<Settings, TunableName>;

export const tunableSchema = z
  .strictObject(SETTING_KINDS)
  .pick(Object.fromEntries(TUNABLE_NAMES.map((name) => [name, true])) as Record<TunableName, true>)
  .partial();

/** `ioEngine` -> `--io-engine`; the flag that a person would write. */
export function flagOf(name: SettingName): string {
  if (name === 'contextLength') return '--context';
  return `--${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

/** `--readers 8 --split 2`, or "the defaults". */
export function describeSettings(settings: Readonly<Partial<Record<SettingName, SettingValue>>>): string {
  const parts = Object.entries(settings).map(([name, value]) => `${flagOf(name as SettingName)} ${value}`);
  return parts.length === 0 ? 'the defaults' : parts.join(' ');
}

/** What an engine with these settings works with, as a person would write it; null where the plan decides. */
export function effectiveValue(settings: EngineSettings, name: SettingName): SettingValue | null {
  const { predict } = settings;
  if (name === 'memory') return settings.budgetBytes;
  if (name === 'lookahead') return predict === undefined || predict.names.length === 0 ? null : predict.depth;
  if (name === 'experts' || name === 'embedding' || name === 'lmHead') return settings.mix[name] ?? null;
  if (name !== 'predict') return settings[name] ?? null;
  return predictText(predict);
}

/** The parts of OpenOptions that are settings. */
export function settingsIn(options: OpenOptions): Settings {
  const wanted = new Set<string>(SETTING_NAMES);
  return Object.fromEntries(
    Object.entries(options).filter(([name, value]) => wanted.has(name) && value !== undefined),
  );
}
