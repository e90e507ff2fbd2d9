/** The options that every command has that opens an engine, and what they become. */
import { type Command, Option } from 'commander';
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
  PREDICTORS,
  type Precision,
  type Predictor,
} from '../engine/options.ts';
import { POLICIES, type Policy } from '../pipeline/eviction.ts';
import { integer, size } from './arguments.ts';
import { say } from './output.ts';

export interface EngineFlags {
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
  readonly backend?: BackendChoice;
  readonly expertsPerToken?: number;
  readonly predict?: Predictor;
  readonly quiet?: boolean;
}

export function addEngineFlags(command: Command): Command {
  return command
    .requiredOption('-m, --model <file>', 'GGUF file, any part of a split set, or packed folder')
    .option('-c, --context <n>', 'positions that fit (default 4096)', integer)
    .option(
      '--memory <size>',
      'memory for weights, context and cache, such as 8G (default: most of what is free)',
      size,
    )
    .option('-t, --threads <n>', 'compute threads (default: all cores)', integer)
    .option('--readers <n>', 'reader threads (default 16)', integer)
    .option('--split <n>', 'chunks that an expert read is cut into (default 1)', integer)
    .addOption(new Option('--io <mode>', 'how files are read (default auto)').choices(IO_MODES))
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
    .addOption(
      new Option('--backend <name>', 'what computes (default auto: Metal where it works)').choices(
        BACKEND_CHOICES,
      ),
    )
    .option('--experts-per-token <n>', "overrides the model's own number of experts", integer)
    .addOption(
      new Option('--predict <name>', 'which experts to read ahead (default none)').choices(PREDICTORS),
    )
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
