/**
 * Settings with several values: every engine setting as a list, and every combination of what was given.
 *
 * A new engine setting appears here by itself: the flags come from the one table of them.
 */
import { type Command, Option } from 'commander';
import { MoestreamError } from '../errors.ts';
import type { BenchSetting } from '../eval/bench.ts';
import { expandList } from '../eval/value-lists.ts';
import { formatBytes } from '../pipeline/memory.ts';
import {
  type EngineFlags,
  environmentNameOf,
  openOptionsOf,
  SETTING_FLAGS,
  type SettingFlag,
} from './engine-options.ts';

export interface SettingListFlags {
  readonly mlock?: boolean;
  readonly profile?: boolean;
  readonly quiet?: boolean;
}

const COMBINATIONS_MAX = 256;

/** The context follows from what is measured. */
const LISTED = SETTING_FLAGS.filter(({ flags }) => !flags.includes('--context'));

function listOption({ flags, description, parse }: SettingFlag): Option {
  return new Option(flags.replace(/<\w+>/, '<list>'), description.replace(/ \(default.*\)/, ''))
    .env(environmentNameOf(flags))
    .argParser((text) => expandList(text).map(parse));
}

export function addSettingLists(command: Command): Command {
  for (const setting of LISTED) command.addOption(listOption(setting));
  return command
    .option('--mlock', 'keep weights and cache from being swapped out')
    .option('--no-profile', 'leave out what `moestream tune` has found for this machine and model')
    .option('-q, --quiet', 'nothing on stderr but errors')
    .addHelpText('after', '\nLists: 1,2,4 or ranges 1-8, 1-8+2, 16-256*2.');
}

const valueText = (attribute: string, value: unknown): string =>
  attribute === 'memory' && typeof value === 'number' ? formatBytes(value) : String(value);

/** Every combination of models and listed values. */
export function settingsOf(models: readonly string[], flags: SettingListFlags): BenchSetting[] {
  const lists = flags as Readonly<Record<string, unknown>>;
  let combinations: Record<string, unknown>[] = models.map((model) => ({ model }));
  const names = LISTED.map(({ flags: text }) => new Option(text)).map((option) => ({
    attribute: option.attributeName(),
    name: option.name(),
  }));
  for (const { attribute } of names) {
    const values = lists[attribute];
    if (!Array.isArray(values)) continue;
    combinations = combinations.flatMap((each) =>
      values.map((value: unknown) => ({ ...each, [attribute]: value })),
    );
  }
  if (combinations.length > COMBINATIONS_MAX) {
    throw new MoestreamError(
      'USAGE',
      `${combinations.length} combinations, at most ${COMBINATIONS_MAX} are measured`,
    );
  }
  const { mlock, profile } = flags;
  return combinations.map((combination) => {
    const { contextLength: _, ...options } = openOptionsOf({
      ...(combination as unknown as EngineFlags),
      ...(mlock === undefined ? {} : { mlock }),
      ...(profile === undefined ? {} : { profile }),
      quiet: true,
    });
    const given = names
      .filter(({ attribute }) => combination[attribute] !== undefined)
      .map(({ attribute, name }) => [name, valueText(attribute, combination[attribute])]);
    return { options, given: Object.fromEntries(given) };
  });
}
