/**
 * What a caller may ask for, and its defaults. Validated here once, so that nothing below has to doubt it.
 */
import { MoestreamError } from '../errors.ts';
import type { MixOptions } from '../model/model.ts';
import { defaultBudgetBytes } from '../pipeline/budget.ts';
import { POLICIES, POLICY_DEFAULT, type Policy } from '../pipeline/eviction.ts';
import { SPLIT_MAX } from '../pipeline/expert-layout.ts';
import { parseBytes } from '../pipeline/memory.ts';
import { defaultThreads } from '../pipeline/plan.ts';
import { LOOKAHEAD_MAX } from '../workers/predictors/lookahead.ts';
import type { SamplingParams } from '../workers/sampler.ts';
import { PREDICT_DEFAULT, type Prediction, predictionOf } from './prediction.ts';

export const IO_MODES = ['auto', 'direct', 'buffered'] as const;
export type IoMode = (typeof IO_MODES)[number];

export const IO_ENGINES = ['auto', 'threads', 'uring'] as const;
export type IoEngine = (typeof IO_ENGINES)[number];

export const PRECISIONS = ['fast', 'exact'] as const;
export type Precision = (typeof PRECISIONS)[number];

export const BACKEND_CHOICES = ['auto', 'metal', 'cpu'] as const;
export type BackendChoice = (typeof BACKEND_CHOICES)[number];

export const KV_TYPES = ['f32', 'f16', 'q8_0'] as const;
export type KvType = (typeof KV_TYPES)[number];

export interface OpenOptions {
  /** Path of a GGUF file, of any part of a split set, of a checkpoint folder, or of a packed folder. */
  readonly model: string;
  /** Another checkpoint of the same model, in any format, that the routed experts come from. */
  readonly experts?: string;
  /** The same for the embedding, */
  readonly embedding?: string;
  /** and for the matrix that makes logits. */
  readonly lmHead?: string;
  /** Total memory for weights, context and expert cache: bytes, or text such as "8G". Default: most of what is free. */
  readonly memory?: number | string;
  /** Positions (prompt and answer) that fit. Default: 4096, or the model's limit when that is lower. */
  readonly contextLength?: number;
  /** Compute threads. Default: the cores that this process may use. */
  readonly threads?: number;
  /** Reader threads. Default 16. */
  readonly readers?: number;
  /** Chunks that an expert's read is cut into, at least one per stretch of the file. Default 1. */
  readonly split?: number;
  /** How files are read: past the page cache, through it, or the first that works. Default auto. */
  readonly io?: IoMode;
  /** What reads: a pool of threads, io_uring, or the better one that works. Default auto. */
  readonly ioEngine?: IoEngine;
  /** Experts whose reads are under way at once; 0 for as many as there are readers. Default 2. */
  readonly window?: number;
  /** Reads that io_uring may have under way. Default 64. */
  readonly queueDepth?: number;
  /**
   * Reads that can wait in each lane of the queue in front of the readers, a power of two. It is the one ring of the token
   * path that can fill: the others carry a row or a token at a time. Default 512: three layers of ten experts in sixteen
   * chunks.
   */
  readonly queueSlots?: number;
  /** How often a compute thread looks for work before it sleeps. Default 50, about 2 microseconds. */
  readonly spins?: number;
  /** Which expert leaves the cache first. Default lfru. */
  readonly cachePolicy?: Policy;
  /** Keeps the weights and the cache from being swapped out. Default false. */
  readonly mlock?: boolean;
  /** Prompt tokens that are computed together. Default: 512, or fewer where that takes more than an eighth of the memory. */
  readonly chunk?: number;
  /**
   * How matrices are multiplied. `fast` rounds activations to 8 bits per block and multiplies integers, as the formats are
   * made for; `exact` keeps float32, and gives the same bits for any chunk. Default fast.
   */
  readonly precision?: Precision;
  /**
   * How attention's keys and values are kept: as they are, as half floats, or in blocks of 32 with 8 bits each, which is
   * about a quarter of the memory. Default: f16 in `fast`, f32 in `exact`.
   */
  readonly kvType?: KvType;
  /**
   * What computes. `auto` is Metal on macOS when its self-test passes, otherwise the CPU. Metal multiplies float32 whatever
   * the precision. Default auto.
   */
  readonly backend?: BackendChoice;
  /** Overrides the number of experts per token that the model was trained with. */
  readonly expertsPerToken?: number;
  /**
   * What is read before a router asks for it. `auto`: the next layer of a chunk that wants nearly all experts, and as many
   * hints as measuring shows to pay, of the predictors named with it or of `lookahead`. `union`: only the former. Names of
   * predictors without `auto`: their hints, as they come. `none`: nothing. Comma-separated text, or a list. Default auto.
   */
  readonly predict?: string | readonly string[];
  /** Layers to predict ahead. Default 1. */
  readonly lookahead?: number;
  /** File in which the predictor markov keeps what it learned, from one engine to the next. Default: it starts anew. */
  readonly predictState?: string;
  /** Records what every thread does and when; `Engine.trace` has it. Costs a little time and memory. Default false. */
  readonly trace?: boolean;
  /** A folder in which each worker thread leaves a profile of its CPU time when the engine is closed. Default none. */
  readonly cpuProfileFolder?: string;
  /** A read that takes longer fails. Default 30,000. */
  readonly readTimeoutMillis?: number;
  /** Told once each, in one sentence, what was chosen where there was a choice. Default: nobody. */
  readonly onNotice?: (sentence: string) => void;
}

export interface EngineSettings {
  readonly model: string;
  readonly mix: MixOptions;
  readonly budgetBytes: number;
  readonly contextLength: number | undefined;
  readonly threads: number;
  readonly readers: number;
  readonly split: number;
  readonly io: IoMode;
  readonly ioEngine: IoEngine;
  readonly window: number;
  /** Whether the caller chose the window: a default bends to the readers that there are. */
  readonly windowGiven: boolean;
  readonly queueDepth: number;
  readonly queueSlots: number;
  readonly spins: number;
  readonly cachePolicy: Policy;
  readonly mlock: boolean;
  /** Undefined lets the plan choose. */
  readonly chunk: number | undefined;
  readonly precision: Precision;
  readonly kvType: KvType;
  readonly backend: BackendChoice;
  readonly expertsPerToken: number | undefined;
  /** Undefined: nobody predicts. */
  readonly predict: Prediction | undefined;
  readonly trace: boolean;
  readonly cpuProfileFolder: string | undefined;
  readonly readTimeoutMillis: number;
  readonly notice: (sentence: string) => void;
}

/** One message of a conversation, as chat templates take them. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/**
 * A prompt: a user's text (the chat template is put around it), a conversation, or text or token ids taken as they are.
 */
export type Prompt =
  | string
  | { readonly messages: readonly ChatMessage[] }
  | { readonly raw: string }
  | { readonly ids: readonly number[] };

export interface GenerateOptions extends Partial<SamplingParams> {
  /** Ends the generation within one layer. */
  readonly signal?: AbortSignal;
  /** Default: what the context has room for. */
  readonly maxTokens?: number;
  /** Texts that end the answer; they are not part of it. */
  readonly stop?: readonly string[];
  /** A system message before a prompt that is a string. */
  readonly system?: string;
  /** Records every choice of the routers in this file (docs/format.md), in the place of what was there. */
  readonly traceRouting?: string;
}

const READERS_MAX = 64;
const THREADS_MAX = 256;
const WINDOW_MAX = 256;
const QUEUE_DEPTH_MAX = 1024;
const QUEUE_SLOTS_MIN = 16;
const QUEUE_SLOTS_MAX = 65_536;
const SPINS_MAX = 1_000_000;
const CHUNK_MAX = 4096;
const CONTEXT_MAX = 2 ** 24;

function integerBetween(name: string, value: number, low: number, high: number): number {
  if (Number.isInteger(value) && value >= low && value <= high) return value;
  throw new MoestreamError('USAGE', `${name} is ${value}, expected an integer from ${low} to ${high}`);
}

function powerOfTwo(name: string, value: number, low: number, high: number): number {
  const whole = integerBetween(name, value, low, high);
  if ((whole & (whole - 1)) === 0) return whole;
  throw new MoestreamError('USAGE', `${name} is ${value}, expected a power of two`);
}

function oneOf<T extends string>(name: string, value: string, choices: readonly T[]): T {
  const found = choices.find((choice) => choice === value);
  if (found !== undefined) return found;
  throw new MoestreamError('USAGE', `${name} is "${value}", expected one of ${choices.join(', ')}`);
}

function budgetOf(memory: number | string | undefined): number {
  if (memory === undefined) return defaultBudgetBytes();
  return typeof memory === 'string'
    ? parseBytes(memory)
    : integerBetween('memory', memory, 1, Number.MAX_SAFE_INTEGER);
}

/** Throws USAGE for the first value that no model could make valid. */
export function settingsOf(options: OpenOptions): EngineSettings {
  if (typeof options.model !== 'string' || options.model === '') {
    throw new MoestreamError('USAGE', 'no model given', { hint: 'Name a GGUF file or a checkpoint folder.' });
  }
  const { contextLength, expertsPerToken } = options;
  const precision = oneOf('precision', options.precision ?? 'fast', PRECISIONS);
  const depth = integerBetween('lookahead', options.lookahead ?? 1, 1, LOOKAHEAD_MAX);
  return {
    model: options.model,
    mix: { experts: options.experts, embedding: options.embedding, lmHead: options.lmHead },
    budgetBytes: budgetOf(options.memory),
    contextLength:
      contextLength === undefined
        ? undefined
        : integerBetween('contextLength', contextLength, 1, CONTEXT_MAX),
    threads: integerBetween('threads', options.threads ?? defaultThreads(), 1, THREADS_MAX),
    readers: integerBetween('readers', options.readers ?? 16, 1, READERS_MAX),
    split: integerBetween('split', options.split ?? 1, 1, SPLIT_MAX),
    io: oneOf('io', options.io ?? 'auto', IO_MODES),
    ioEngine: oneOf('ioEngine', options.ioEngine ?? 'auto', IO_ENGINES),
    window: integerBetween('window', options.window ?? 2, 0, WINDOW_MAX),
    windowGiven: options.window !== undefined,
    queueDepth: integerBetween('queueDepth', options.queueDepth ?? 64, 1, QUEUE_DEPTH_MAX),
    queueSlots: powerOfTwo('queueSlots', options.queueSlots ?? 512, QUEUE_SLOTS_MIN, QUEUE_SLOTS_MAX),
    spins: integerBetween('spins', options.spins ?? 50, 0, SPINS_MAX),
    cachePolicy: oneOf('cachePolicy', options.cachePolicy ?? POLICY_DEFAULT, POLICIES),
    mlock: options.mlock ?? false,
    chunk: options.chunk === undefined ? undefined : integerBetween('chunk', options.chunk, 1, CHUNK_MAX),
    precision,
    kvType: oneOf('kvType', options.kvType ?? (precision === 'fast' ? 'f16' : 'f32'), KV_TYPES),
    backend: oneOf('backend', options.backend ?? 'auto', BACKEND_CHOICES),
    expertsPerToken:
      expertsPerToken === undefined
        ? undefined
        : integerBetween('expertsPerToken', expertsPerToken, 1, 65536),
    predict: predictionOf(options.predict ?? PREDICT_DEFAULT, depth, options.predictState),
    trace: options.trace ?? false,
    cpuProfileFolder: options.cpuProfileFolder,
    readTimeoutMillis: integerBetween('readTimeoutMillis', options.readTimeoutMillis ?? 30_000, 1, 3_600_000),
    notice: options.onNotice ?? (() => {}),
  };
}
