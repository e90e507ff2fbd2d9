/**
 * Benchmarks in llama-bench's terms: tests of prompts (`pp512`), answers (`tg128`), both (`pp512+tg128`), each at a depth of
 * context that was there before (`@ d4096`), repeated, with mean and deviation.
 *
 * What differs, because experts come from a disk: tokens are of a real text, not random; the first token's time, bytes
 * read, hit rate and stalls stand beside the speed; and it is said what the caches held. Warm runs follow one untimed run
 * of the same tokens; cold ones open the engine anew each time. Engine and context stay the same over the tests of one
 * setting, so that the expert cache has one size.
 */
import { type Engine, open } from '../engine/engine.ts';
import type { OpenOptions } from '../engine/options.ts';
import type { CacheState } from './cold.ts';
import {
  type CacheMode,
  measureOn,
  positionsOf,
  prepare,
  type RunListeners,
  type RunMeasurement,
  type RunShape,
  type RunTokens,
  tokensOf,
} from './measure-run.ts';
import { bootstrapInterval, type Interval, mean, median, type Summary, summarise } from './statistics.ts';
import { idsOf, type TokenSource } from './token-source.ts';

export interface BenchTest extends RunShape {
  readonly depthTokens: number;
  /** One run, whose speed is reported over time. */
  readonly sustained?: boolean;
}

export interface BenchSetting {
  readonly options: Omit<OpenOptions, 'onNotice' | 'contextLength'>;
  /** What of it was asked for, by flag: for the table. */
  readonly given: Readonly<Record<string, string>>;
}

export interface BenchRequest {
  readonly setting: BenchSetting;
  readonly tests: readonly BenchTest[];
  readonly repetitions: number;
  readonly cache: CacheMode;
  readonly source?: TokenSource;
}

/** Part of a long run. */
export interface SpeedAt {
  readonly fromToken: number;
  readonly toToken: number;
  readonly tokensPerSecond: number;
}

export interface BenchRow {
  readonly model: string;
  readonly name: string;
  readonly sizeBytes: number;
  readonly given: Readonly<Record<string, string>>;
  readonly test: string;
  readonly promptTokens: number;
  readonly decodeTokens: number;
  readonly depthTokens: number;
  readonly repetitions: number;
  readonly cache: CacheState;
  /** Of the whole test, as llama-bench counts it: prompt and answer by the time of both. */
  readonly tokensPerSecond: Summary;
  /** Of the median. */
  readonly interval: Interval;
  readonly samples: readonly number[];
  readonly prefillTokensPerSecond: number | null;
  readonly decodeTokensPerSecond: number | null;
  /** Medians of the repetitions from here on. */
  readonly firstTokenMillis: number;
  readonly tokenMillisP50: number | null;
  readonly tokenMillisP99: number | null;
  readonly bytesReadPerToken: number;
  readonly hitRate: number;
  readonly stallShare: number;
  /** The most that other processes took of all cores during one repetition. */
  readonly othersShare: number;
  /** How long the CPU limit of a control group held the repetitions back, all together. */
  readonly throttledMillis: number;
  readonly series?: readonly SpeedAt[];
  /** Of a sustained test: the last quarter's median time per token by the first quarter's. */
  readonly slowdown?: number;
}

export interface BenchListeners extends RunListeners {
  readonly onRow: (row: BenchRow) => Promise<void>;
  readonly onRun?: (test: string, repetition: number) => void;
}

const SERIES_PARTS = 10;

export function testName({ promptTokens, decodeTokens, depthTokens }: BenchTest): string {
  const parts = [
    ...(promptTokens > 0 ? [`pp${promptTokens}`] : []),
    ...(decodeTokens > 0 ? [`tg${decodeTokens}`] : []),
  ];
  return `${parts.join('+')}${depthTokens > 0 ? ` @ d${depthTokens}` : ''}`;
}

/** Measures every test of one setting; rows go out as they are done. Throws MoestreamError. */
export async function bench(request: BenchRequest, listeners: BenchListeners): Promise<void> {
  const { setting, tests, repetitions, cache } = request;
  const contextLength = Math.max(...tests.map(positionsOf));
  const openEngine = (): Promise<Engine> => open({ ...setting.options, contextLength, onNotice: once });
  const told = new Set<string>();
  const once = (sentence: string): void => {
    if (!told.has(sentence)) listeners.notice?.(sentence);
    told.add(sentence);
  };
  let engine = await openEngine();
  let fresh = true;
  try {
    const ids = idsOf(engine, request.source ?? {});
    for (const test of tests) {
      const tokens = tokensOf(ids, test, once);
      const runs: RunMeasurement[] = [];
      let state: CacheState | undefined;
      for (let repetition = 0; repetition < (test.sustained ? 1 : repetitions); repetition++) {
        listeners.onRun?.(testName(test), repetition);
        if (cache === 'cold' && !fresh) {
          await engine.close();
          engine = await openEngine();
        }
        fresh = false;
        if (cache === 'cold' || state === undefined)
          state = await prepare(engine, tokens, cache, listeners.signal);
        runs.push(await measureOn(engine, tokens, state, listeners.signal));
      }
      await listeners.onRow(rowOf(engine, request, test, tokens, runs));
    }
  } finally {
    await engine.close();
  }
}

function totalSpeed({ prefill, decode }: RunMeasurement): number {
  const parts = [prefill, decode].filter((part) => part !== undefined);
  const tokens = parts.reduce((sum, part) => sum + part.tokens, 0);
  return (tokens * 1000) / parts.reduce((sum, part) => sum + part.millis, 0);
}

function rowOf(
  engine: Engine,
  { setting }: BenchRequest,
  test: BenchTest,
  tokens: RunTokens,
  runs: readonly RunMeasurement[],
): BenchRow {
  const samples = runs.map(totalSpeed);
  const parts = runs.flatMap(({ prefill, decode }) => [
    [prefill, decode].filter((part) => part !== undefined),
  ]);
  const over = (value: (run: RunMeasurement) => number | undefined): number | null => {
    const found = runs.map(value).filter((each) => each !== undefined);
    return found.length === 0 ? null : median(found);
  };
  const share = (value: (index: number) => number): number => median(runs.map((_, index) => value(index)));
  const sum = (index: number, of: 'tokens' | 'millis' | 'bytesRead'): number =>
    parts[index]!.reduce((total, part) => total + part[of], 0);
  const last = runs.at(-1)!;
  return {
    model: setting.options.model,
    name: engine.model.hyperparameters.name ?? setting.options.model,
    sizeBytes: engine.model.files.reduce((total, file) => total + file.sizeBytes, 0),
    given: setting.given,
    test: testName(test),
    promptTokens: test.promptTokens,
    decodeTokens: test.decodeTokens,
    depthTokens: tokens.depthTokens,
    repetitions: runs.length,
    cache: last.cache,
    tokensPerSecond: summarise(samples),
    interval: bootstrapInterval(samples),
    samples,
    prefillTokensPerSecond: over(({ prefill }) => prefill?.tokensPerSecond),
    decodeTokensPerSecond: over(({ decode }) => decode?.tokensPerSecond),
    firstTokenMillis: over(({ firstTokenMillis }) => firstTokenMillis)!,
    tokenMillisP50: over(({ tokenMillisP50 }) => tokenMillisP50),
    tokenMillisP99: over(({ tokenMillisP99 }) => tokenMillisP99),
    bytesReadPerToken: share((index) => sum(index, 'bytesRead') / sum(index, 'tokens')),
    hitRate: share((index) => hitRateOf(parts[index]!)),
    stallShare: share(
      (index) =>
        parts[index]!.reduce((total, part) => total + part.stallShare * part.millis, 0) /
        sum(index, 'millis'),
    ),
    othersShare: Math.max(...runs.map(({ disturbance }) => disturbance.othersShare)),
    throttledMillis: runs.reduce((total, { disturbance }) => total + disturbance.throttledMillis, 0),
    ...(test.sustained === true ? seriesOf(last.tokenMillis) : {}),
  };
}

function hitRateOf(parts: readonly { readonly lookups: number; readonly hits: number }[]): number {
  const lookups = parts.reduce((sum, part) => sum + part.lookups, 0);
  return lookups === 0 ? 1 : parts.reduce((sum, part) => sum + part.hits, 0) / lookups;
}

/** The speed over a long answer, in parts, and how much slower its end is. */
export function seriesOf(tokenMillis: readonly number[]): Required<Pick<BenchRow, 'series' | 'slowdown'>> {
  const count = tokenMillis.length;
  const size = Math.ceil(count / SERIES_PARTS);
  const series: SpeedAt[] = [];
  for (let from = 0; from < count; from += size) {
    const part = tokenMillis.slice(from, from + size);
    series.push({ fromToken: from + 1, toToken: from + part.length, tokensPerSecond: 1000 / mean(part) });
  }
  const quarter = Math.ceil(count / 4);
  return { series, slowdown: median(tokenMillis.slice(-quarter)) / median(tokenMillis.slice(0, quarter)) };
}
