/**
 * One measured run: given tokens through the whole pipeline, as an answer goes through it, and what it took.
 *
 * Every number comes from the stages' own counters, per part of the run: the context that was there before, the prompt,
 * and the answer. The answer is replayed: the sampler draws from the logits as always and is overruled, so that every
 * setting, and every lossy model, computes the same tokens.
 *
 * Request and result are plain data. A run in another process, or from a queue, is the same call.
 */
import { CONTEXT_DEFAULT } from '../engine/backend-config.ts';
import { type Engine, open } from '../engine/engine.ts';
import type { OpenOptions } from '../engine/options.ts';
import type { PhaseTotals } from '../workers/compute.ts';
import { type CacheState, coldCaches } from './cold.ts';
import { type Disturbance, watchMachine } from './machine.ts';
import { quantile } from './statistics.ts';
import { idsOf, type TokenSource, takeIds } from './token-source.ts';

/** What the caches hold when the clock starts: see `coldCaches`, and `warmUp` below. */
export const CACHE_MODES = ['warm', 'cold', 'as-is'] as const;
export type CacheMode = (typeof CACHE_MODES)[number];

export interface RunShape {
  /** Tokens of context that are there before the clock starts. */
  readonly depthTokens?: number;
  /** Tokens that are computed as a prompt. 0: one, as an answer needs something to follow, and no prompt is reported. */
  readonly promptTokens: number;
  /** Tokens that are computed as an answer, one by one. May be 0. */
  readonly decodeTokens: number;
}

export interface RunRequest extends RunShape {
  /** What the engine is opened with. */
  readonly options: Omit<OpenOptions, 'onNotice'>;
  /** Default: the text that comes with moestream. */
  readonly source?: TokenSource;
  /** Default warm: the same tokens have run once in the same engine, untimed. */
  readonly cache?: CacheMode;
}

export interface PhaseMeasurement {
  readonly tokens: number;
  readonly millis: number;
  readonly tokensPerSecond: number;
  readonly bytesRead: number;
  readonly bytesReadPerToken: number;
  /** Experts that were wanted, once per layer and step, and those of them that were in the slab. */
  readonly lookups: number;
  readonly hits: number;
  readonly hitRate: number;
  /** What was read ahead: bytes that were wanted then, and bytes that nobody wanted. */
  readonly usefulPrefetchBytes: number;
  readonly wastedPrefetchBytes: number;
  /** Share of the time in which compute waited for reads. */
  readonly stallShare: number;
}

export interface RunMeasurement {
  /** Absent where the run had no such part. */
  readonly prefill?: PhaseMeasurement;
  readonly decode?: PhaseMeasurement;
  /** From the request to the first token of the answer; with a depth, that includes the context before. */
  readonly firstTokenMillis: number;
  /** Of every token of the answer, in order. */
  readonly tokenMillis: readonly number[];
  readonly tokenMillisP50?: number;
  readonly tokenMillisP99?: number;
  /** A hash of what the sampler drew, and of the logits it drew by: settings that change no bit leave it as it is. */
  readonly drawn: string;
  readonly cache: CacheState;
  /** What else the machine did meanwhile. */
  readonly disturbance: Disturbance;
}

export interface RunListeners {
  readonly signal?: AbortSignal;
  readonly notice?: (sentence: string) => void;
}

/** Opens an engine, measures one run and closes it. Throws MoestreamError. */
export async function measureRun(request: RunRequest, listeners: RunListeners = {}): Promise<RunMeasurement> {
  const { notice = () => {}, signal } = listeners;
  const needed = positionsOf(request);
  const longer = request.options.contextLength === undefined && needed > CONTEXT_DEFAULT;
  const engine = await open({
    ...request.options,
    ...(longer ? { contextLength: needed } : {}),
    onNotice: notice,
  });
  try {
    const ids = idsOf(engine, request.source ?? {});
    const tokens = tokensOf(ids, request, notice);
    const cache = await prepare(engine, tokens, request.cache ?? 'warm', signal);
    return await measureOn(engine, tokens, cache, signal);
  } finally {
    await engine.close();
  }
}

/** The ids of a run, cut out of a text in order. */
export interface RunTokens {
  readonly shape: RunShape;
  /** Context and prompt. */
  readonly prompt: readonly number[];
  readonly depthTokens: number;
  readonly answer: readonly number[];
}

/** Positions that a run takes. */
export function positionsOf({ depthTokens = 0, promptTokens, decodeTokens }: RunShape): number {
  return depthTokens + Math.max(1, promptTokens) + decodeTokens;
}

export function tokensOf(
  ids: readonly number[],
  shape: RunShape,
  notice: (sentence: string) => void,
): RunTokens {
  const { depthTokens = 0, promptTokens, decodeTokens } = shape;
  const promptEnd = depthTokens + Math.max(1, promptTokens);
  const taken = takeIds(ids, promptEnd + decodeTokens, notice);
  return { shape, prompt: taken.slice(0, promptEnd), depthTokens, answer: taken.slice(promptEnd) };
}

/** Brings the caches of a fresh engine into the state that was asked for, and says which that is. */
export async function prepare(
  engine: Engine,
  tokens: RunTokens,
  mode: CacheMode,
  signal?: AbortSignal,
): Promise<CacheState> {
  if (mode === 'cold') return coldCaches(engine);
  if (mode === 'as-is')
    return { mode, sentence: 'the expert cache is empty, the page cache as it was found' };
  await drain(engine.replay(tokens.prompt, tokens.answer, signal === undefined ? {} : { signal }));
  return { mode, sentence: 'the same tokens have run once before' };
}

async function drain(generation: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of generation);
}

/** Measures one run on an engine that is at rest. */
export async function measureOn(
  engine: Engine,
  tokens: RunTokens,
  cache: CacheState,
  signal?: AbortSignal,
): Promise<RunMeasurement> {
  const { prompt, answer, depthTokens, shape } = tokens;
  const stepMicros = new Float64Array(new SharedArrayBuffer(answer.length * 8));
  const watch = watchMachine();
  const generation = engine.replay(prompt, answer, {
    depthTokens,
    stepMicros,
    ...(signal === undefined ? {} : { signal }),
  });
  const beganMillis = performance.now();
  let firstTokenMillis: number | undefined;
  for await (const piece of generation) {
    if (piece.token !== undefined) firstTokenMillis ??= performance.now() - beganMillis;
  }
  // An answer of no tokens has its first at the end of the run: the sampler has drawn it, nobody has asked for it.
  firstTokenMillis ??= performance.now() - beganMillis;
  const disturbance = watch();
  const { compute, sample } = generation.totals;
  const tokenMillis = Array.from(stepMicros, (micros) => micros / 1000);
  return {
    ...(shape.promptTokens === 0 ? {} : { prefill: phaseOf(compute.prompt) }),
    ...(answer.length === 0
      ? {}
      : {
          decode: phaseOf(compute.decode),
          tokenMillisP50: quantile(tokenMillis, 0.5),
          tokenMillisP99: quantile(tokenMillis, 0.99),
        }),
    firstTokenMillis,
    tokenMillis,
    drawn: (sample?.drawnHash ?? 0).toString(16).padStart(8, '0'),
    cache,
    disturbance,
  };
}

function phaseOf(phase: PhaseTotals): PhaseMeasurement {
  const { tokens, micros, bytesRead, lookups, hits, usefulPrefetchBytes, wastedPrefetchBytes } = phase;
  return {
    tokens,
    millis: micros / 1000,
    tokensPerSecond: (tokens * 1e6) / micros,
    bytesRead,
    bytesReadPerToken: bytesRead / tokens,
    lookups,
    hits,
    hitRate: lookups === 0 ? 1 : hits / lookups,
    usefulPrefetchBytes,
    wastedPrefetchBytes,
    stallShare: phase.waitMicros / micros,
  };
}
