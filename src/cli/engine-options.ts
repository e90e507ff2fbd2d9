/** The options that every command has that opens an engine, and what they become. */
import { type Command, Option } from 'commander';
import {
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
  readonly cachePolicy?: Policy;
  readonly mlock?: boolean;
  readonly chunk?: number;
  readonly precision?: Precision;
  readonly kvType?: KvType;
  readonly expertsPerToken?: number;
  readonly predict?: string;
  readonly lookahead?: number;
  readonly predictState?: string;
  readonly quiet?: boolean;
}

export const MODEL_FLAG = ['-m, --model <file>', MODEL_ARGUMENT] as const;

export function addEngineFlags(command: Command): Command {
  return addTuningFlags(command.requiredOption(...MODEL_FLAG));
}

/** All but the model itself, for commands that take it as an argument too. */
export function addTuningFlags(command: Command): Command {
  return addMixFlags(command)
    .option('-c, --context <n>', 'positions that fit (default 4096)', integer)
    .option(
      '--memory <size>',
      'memory for weights, context and cache, such as 8G (default: most of what is free)',
      size,
    )
    .option('-t, --threads <n>', 'compute threads (default: all cores)', integer)
    .option('--readers <n>', 'reader threads (default 16)', integer)
    .option('--split <n>', 'chunks that an expert read is cut into (default 1)', integer)
    .addOption(
      new Option(
        '--io <mode>',
        'how files are read; auto: direct, or buffered if all is cached (default auto)',
      ).choices(IO_MODES),
    )
    .addOption(new Option('--io-engine <name>', 'what reads (default auto)').choices(IO_ENGINES))
    .option('--window <n>', 'experts whose reads are under way at once, 0 for no limit (default 2)', integer)
    .option('--queue-depth <n>', 'reads that io_uring may have under way (default 64)', integer)
    .addOption(
      new Option('--cache-policy <name>', 'which expert leaves the cache first (default lru)').choices(
        POLICIES,
      ),
    )
    .option('--mlock', 'keep weights and cache from being swapped out')
    .option('--chunk <n>', 'prompt tokens computed together (default: up to 512, as memory allows)', integer)
    .addOption(
      new Option('--precision <name>', 'how matrices are multiplied (default fast)').choices(PRECISIONS),
    )
    .addOption(
      new Option(
        '--kv-type <name>',
        'how keys and values are kept (default f16, in precision exact f32)',
      ).choices(KV_TYPES),
    )
    .option('--experts-per-token <n>', "overrides the model's own number of experts", integer)
    .option(
      '--predict <names>',
      `who names experts to read ahead: none, auto, or of ${PREDICTOR_NAMES.join(', ')} (default none)`,
    )
    .option('--lookahead <n>', 'layers to predict ahead (default 1)', integer)
    .option('--predict-state <file>', 'where the predictor markov keeps what it learned')
    .option('-q, --quiet', 'nothing on stderr but errors');
}

export function openOptionsOf(flags: EngineFlags): OpenOptions {
  const { context, quiet, ...rest } = flags;
  return {
    ...rest,
    ...(context === undefined ? {} : { contextLength: context }),
    ...(quiet === true ? {} : { onNotice: (sentence: string) => say(`moestream: ${sentence}`) }),
  };
}
