/** `moestream config`: what a model would be run with, and where each value comes from. Opens nothing but the header. */
import type { Command } from 'commander';
import { type EngineSettings, settingsOf } from '../engine/options.ts';
import { type AppliedProfile, applyProfile } from '../eval/profile/apply.ts';
import { effectiveValue, flagOf, SETTING_NAMES, type SettingName, TUNABLE_NAMES } from '../eval/settings.ts';
import { openModel } from '../model/model.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { addEngineFlags, type EngineFlags, environmentNameOf, givenOptionsOf } from './engine-options.ts';
import { print, say, table } from './output.ts';

interface ConfigFlags extends EngineFlags {
  readonly json?: boolean;
}

type Source = 'flag' | 'environment' | 'profile' | 'default';

export interface ConfigRow {
  readonly setting: SettingName;
  readonly flag: string;
  /** Null where the engine decides when it has seen the model and its memory. */
  readonly value: string | number | boolean | null;
  readonly from: Source;
  /** The variable, the profile's day, or why the profile's value is left out. */
  readonly detail: string;
}

export function addConfig(program: Command): void {
  const command = program.command('config');
  addEngineFlags(command, { model: 'argument' })
    .description('show what a model would be run with: each value and where it comes from')
    .argument('<model>', 'GGUF file, any part of a split set, or packed folder')
    .option('--json', 'as JSON')
    .action((model: string, flags: ConfigFlags) => config(model, flags, command));
}

async function config(model: string, flags: ConfigFlags, command: Command): Promise<void> {
  openModel(model);
  const { onNotice: _, ...given } = givenOptionsOf({ ...flags, model });
  const problems: string[] = [];
  const applied: AppliedProfile =
    flags.profile === false
      ? { options: given, entry: undefined, path: undefined, used: [], leftOut: [] }
      : applyProfile({ ...given, onNotice: (sentence) => problems.push(sentence) });
  const settings = settingsOf(applied.options);
  const rows = SETTING_NAMES.map((name) => rowOf(name, applied, settings, command));
  if (flags.json === true) {
    const { entry, path, leftOut } = applied;
    return print(
      `${JSON.stringify({ model, settings: rows, profile: entry ?? null, path: path ?? null, leftOut }, undefined, 1)}\n`,
    );
  }
  await print(table([['setting', 'value', 'from', ''], ...rows.map(cellsOf)]));
  await print(`\n${profileLine(applied, flags)}\n`);
  if (applied.entry === undefined) for (const problem of problems) say(`moestream: ${problem}`);
}

function rowOf(
  setting: SettingName,
  applied: AppliedProfile,
  settings: EngineSettings,
  command: Command,
): ConfigRow {
  const flag = flagOf(setting);
  const attribute = setting === 'contextLength' ? 'context' : setting;
  const base = { setting, flag, value: effectiveValue(settings, setting) };
  const source = command.getOptionValueSource(attribute);
  if (source === 'env') return { ...base, from: 'environment', detail: environmentNameOf(flag) };
  if (source !== undefined && source !== 'default') return { ...base, from: 'flag', detail: '' };
  const tunable = TUNABLE_NAMES.find((name) => name === setting);
  if (tunable !== undefined && applied.used.includes(tunable)) {
    return { ...base, from: 'profile', detail: applied.entry?.tunedAt.slice(0, 10) ?? '' };
  }
  const left = applied.leftOut.find(({ name }) => name === setting);
  const detail =
    left === undefined ? '' : `not the profile's ${applied.entry?.settings[left.name]}: ${left.because}`;
  return { ...base, from: 'default', detail };
}

/** What it means that a setting has no value, where that is not the plan's choice. */
const UNSET: Partial<Record<SettingName, string>> = {
  lookahead: '-',
  experts: "the model's",
  embedding: "the model's",
  lmHead: "the model's",
  expertsPerToken: "the model's",
};

function cellsOf({ setting, flag, value, from, detail }: ConfigRow): string[] {
  const text =
    value === null
      ? (UNSET[setting] ?? 'by the plan')
      : setting === 'memory'
        ? formatBytes(Number(value))
        : value;
  return [flag.slice(2), String(text), from, detail];
}

function profileLine({ entry, path }: AppliedProfile, flags: ConfigFlags): string {
  if (flags.profile === false) return 'profile: left out by --no-profile';
  if (entry === undefined)
    return 'profile: none for this machine, disk, model and memory; `moestream tune` makes one';
  const day = entry.tunedAt.slice(0, 10);
  if (entry.gain === null) return `profile: ${path}\n  tuned ${day}: nothing was better than the defaults`;
  const { ratio, low, high } = entry.gain;
  return (
    `profile: ${path}\n  tuned ${day} at ${formatBytes(entry.budgetBytes)}: ${entry.score} ${ratio.toFixed(3)} times the ` +
    `defaults (${low.toFixed(3)} to ${high.toFixed(3)})`
  );
}
