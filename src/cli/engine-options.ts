/**
 * The options that every command has that opens an engine, and what they become.
 *
 * A setting comes from the first of these that has it: the command line, an environment variable (`MOESTREAM_READERS` for
 * `--readers`), the profile that `moestream tune` has stored for this machine, disk and model, the built-in default.
 */
import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  BACKEND_CHOICES,
  type BackendChoice,
  IO_ENGINES,
  IO_MODES,
  type IoEngine,
  type IoMode,
  KV_TYPES,
  type KvType,
  type OpenOptions,
  PRECISIONS,
  type Precision,
} from '../engine/options.ts';
import { applyProfile } from '../eval/profile/apply.ts';
import { POLICIES, type Policy } from '../pipeline/eviction.ts';
import { PREDICTOR_NAMES } from '../workers/predictors/predictor.ts';
import { integer, MODEL_ARGUMENT, size } from './arguments.ts';
import { say } from './output.ts';

/** Parts from other checkpoints of the same model. */
export interface MixFlags {
  readonly experts?: string;
  readonly embedding?: string;
  readonly lmHead?: string;
}

export function addMixFlags(command: Command): Command {
  return command
    .option('--experts <model>', 'take the routed experts from another checkpoint of the same model')
    .option('--embedding <model>', 'take the embedding from another one')
    .option('--lm-head <model>', 'take the matrix that makes logits from another one');
}

export interface EngineFlags extends MixFlags {
  readonly model: string;
  readonly context?: number;
  readonly memory?: number;
  readonly threads?: number;
  readonly readers?: number;
  readonly split?: number;
  readonly window?: number;
  readonly io?: IoMode;
  readonly ioEngine?: IoEngine;
  readonly queueDepth?: number;
  readonly queueSlots?: number;
  readonly spins?: number;
  readonly cachePolicy?: Policy;
  readonly mlock?: boolean;
  readonly chunk?: number;
  readonly precision?: Precision;
  readonly kvType?: KvType;
  readonly backend?: BackendChoice;
  readonly expertsPerToken?: number;
  readonly predict?: string;
  readonly lookahead?: number;
  readonly predictState?: string;
  readonly profile?: boolean;
  readonly quiet?: boolean;
}

export const MODEL_FLAG = ['-m, --model <file>', MODEL_ARGUMENT] as const;

type Parser = (text: string) => unknown;

/** Every setting that takes a value: its flag, what it is, and how its text is read. */
const SETTINGS: readonly (readonly [string, string, Parser | readonly string[]])[] = [
  ['-c, --context <n>', 'positions that fit (default 4096)', integer],
  [
    '--memory <size>',
    'memory for weights, context and cache, such as 8G (default: most of what is free)',
    size,
  ],
  ['-t, --threads <n>', 'compute threads (default: all cores)', integer],
  ['--readers <n>', 'reader threads (default 16)', integer],
  ['--split <n>', 'chunks that an expert read is cut into (default 1)', integer],
  ['--io <mode>', 'how files are read; auto: direct, or buffered if all is cached (default auto)', IO_MODES],
  ['--io-engine <name>', 'what reads (default auto)', IO_ENGINES],
  ['--window <n>', 'experts whose reads are under way at once, 0 for no limit (default 2)', integer],
  ['--queue-depth <n>', 'reads that io_uring may have under way (default 64)', integer],
  [
    '--queue-slots <n>',
    'reads that can wait in each lane of the queue, a power of two (default 512)',
    integer,
  ],
  ['--spins <n>', 'looks for work before a compute thread sleeps (default 50)', integer],
  ['--cache-policy <name>', 'which expert leaves the cache first (default lfru)', POLICIES],
  ['--chunk <n>', 'prompt tokens computed together (default: up to 512, as memory allows)', integer],
  ['--precision <name>', 'how matrices are multiplied (default fast)', PRECISIONS],
  ['--kv-type <name>', 'how keys and values are kept (default f16, in precision exact f32)', KV_TYPES],
  ['--backend <name>', 'what computes (default auto: Metal where it works)', BACKEND_CHOICES],
  ['--experts-per-token <n>', "overrides the model's own number of experts", integer],
  [
    '--predict <names>',
    `what is read ahead: auto, none, union (of a prompt), or of ${PREDICTOR_NAMES.join(', ')} (default auto)`,
    String,
  ],
  ['--lookahead <n>', 'layers to predict ahead (default 1)', integer],
];

/** What every setting's flag looks like, for commands that take lists of values instead of one. */
export interface SettingFlag {
  readonly flags: string;
  readonly description: string;
  readonly parse: Parser;
}

export const SETTING_FLAGS: readonly SettingFlag[] = SETTINGS.map(([flags, description, kind]) => ({
  flags,
  description: typeof kind === 'function' ? description : `${description}: ${kind.join(', ')}`,
  parse: typeof kind === 'function' ? kind : choice(kind),
}));

function choice(choices: readonly string[]): Parser {
  return (text) => {
    if (choices.includes(text)) return text;
    throw new InvalidArgumentError(`Allowed choices are ${choices.join(', ')}.`);
  };
}

/** `--io-engine <name>` -> `MOESTREAM_IO_ENGINE`. */
export function environmentNameOf(flags: string): string {
  return `MOESTREAM_${/--([a-z-]+)/.exec(flags)![1]!.toUpperCase().replaceAll('-', '_')}`;
}

function settingOption(flags: string, description: string, kind: Parser | readonly string[]): Option {
  const option = new Option(flags, description).env(environmentNameOf(flags));
  return typeof kind === 'function' ? option.argParser(kind) : option.choices(kind);
}

/**
 * `-m` names the model, except in commands whose first argument does; those call `openOptionsOf({ ...flags, model })`.
 * Environment variables set what takes a value. Without `lasting` a command knows
 * nothing that outlasts it, profiles and what predictors have learned: its runs must not change one another.
 */
export function addEngineFlags(
  command: Command,
  {
    model = 'flag',
    lasting = true,
  }: { readonly model?: 'flag' | 'argument'; readonly lasting?: boolean } = {},
): Command {
  if (model === 'flag') command.requiredOption(...MODEL_FLAG);
  addMixFlags(command);
  for (const setting of SETTINGS) command.addOption(settingOption(...setting));
  command.option('--mlock', 'keep weights and cache from being swapped out');
  if (lasting) {
    command
      .addOption(
        settingOption('--predict-state <file>', 'where the predictor markov keeps what it learned', String),
      )
      .option('--no-profile', 'leave out what `moestream tune` has found for this machine and model');
  }
  return command.option('-q, --quiet', 'nothing on stderr but errors');
}

/** What was given by flags and environment, without the profile. */
export function givenOptionsOf(flags: EngineFlags): OpenOptions {
  const { context, quiet, profile, ...rest } = flags;
  return {
    ...rest,
    ...(context === undefined ? {} : { contextLength: context }),
    ...(quiet === true ? {} : { onNotice: (sentence: string) => say(`moestream: ${sentence}`) }),
  };
}

/** What was given, and the stored profile for the rest. */
export function openOptionsOf(flags: EngineFlags): OpenOptions {
  const given = givenOptionsOf(flags);
  return flags.profile === false ? given : applyProfile(given).options;
}
