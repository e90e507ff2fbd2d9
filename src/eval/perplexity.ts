/**
 * Perplexity: how well a model foresees a text, through the same stages, cache and prediction as an answer.
 *
 * The reference engine's gate could not see its own defect, because prediction was off while it scored. Here nothing
 * is: rows come from the compute stage that generates, hints are followed and experts evicted as always. By default the
 * text is computed in chunks, as a prompt is; with `decode` token by token, as an answer is.
 *
 * Request and result are plain data. A run in another process, or from a queue, is the same call.
 */
import { createHash } from 'node:crypto';
import { type Engine, open } from '../engine/engine.ts';
import type { OpenOptions } from '../engine/options.ts';
import { invariant, MoestreamError } from '../errors.ts';
import { BaselineReader, BaselineWriter } from './baseline.ts';
import { type Divergence, DivergenceSum } from './kl.ts';
import { logSumExp } from './likelihood.ts';
import type { RunListeners } from './measure-run.ts';
import { idsOf, type TokenSource } from './token-source.ts';
import {
  describeWindows,
  positionsOf,
  rowsPerWindow,
  type ScoringMethod,
  type Windows,
  windowsOf,
} from './windows.ts';

export interface PerplexityRequest {
  /** What the engine is opened with; the context is the method's. */
  readonly options: Omit<OpenOptions, 'onNotice' | 'contextLength'>;
  /** Default: the text that comes with moestream, or the baseline's. */
  readonly source?: TokenSource;
  /** Default: the baseline's, or chunks of 512. */
  readonly method?: ScoringMethod;
  /** Token by token, as an answer is computed. Default: in chunks, as a prompt is. */
  readonly decode?: boolean;
  /** Where to write the probabilities. */
  readonly writeBaseline?: string;
  /** The probabilities to compare with: they bring their own text and method. */
  readonly baseline?: string;
}

export interface PerplexityMeasurement {
  readonly perplexity: number;
  /** Standard error of the perplexity, as if tokens were independent. */
  readonly error: number;
  /** Mean negative log-likelihood of a scored token, in nats, and its standard error. */
  readonly meanNll: number;
  readonly meanNllError: number;
  readonly scoredTokens: number;
  /** How it was scored, as a sentence: numbers of different methods must not be compared. */
  readonly method: string;
  readonly millis: number;
  readonly bytesRead: number;
  readonly hitRate: number;
  /** A hash of every scored token's likelihood: settings that change no bit leave it as it is. */
  readonly digest: string;
  readonly divergence?: Divergence;
}

export interface PerplexityListeners extends RunListeners {
  /** After every scored token: how far it is, and the perplexity until then. */
  readonly onProgress?: (done: number, total: number, perplexity: number) => void;
}

/** Opens an engine, scores a text and closes it. Throws MoestreamError. */
export async function measurePerplexity(
  request: PerplexityRequest,
  listeners: PerplexityListeners = {},
): Promise<PerplexityMeasurement> {
  const reader = request.baseline === undefined ? undefined : new BaselineReader(request.baseline);
  try {
    if (reader !== undefined && (request.source !== undefined || request.method !== undefined)) {
      throw new MoestreamError('USAGE', 'a baseline brings its own text and method, and another was given');
    }
    const method = request.method ?? { context: 512 };
    const contextLength = reader?.header.windowTokens ?? positionsOf(method);
    const { notice = () => {} } = listeners;
    const engine = await open({ ...request.options, contextLength, onNotice: notice });
    try {
      const windows = reader?.header ?? windowsFor(engine, request.source ?? {}, method);
      return await scoreWindows(engine, windows, request, reader, listeners);
    } finally {
      await engine.close();
    }
  } finally {
    reader?.close();
  }
}

function windowsFor(engine: Engine, source: TokenSource, method: ScoringMethod): Windows {
  return windowsOf(idsOf(engine, source), method, engine.model.tokenizer.firstId);
}

async function scoreWindows(
  engine: Engine,
  windows: Windows,
  request: PerplexityRequest,
  reader: BaselineReader | undefined,
  listeners: PerplexityListeners,
): Promise<PerplexityMeasurement> {
  const vocabulary = engine.vocabularySize;
  if (reader !== undefined && reader.header.vocabulary !== vocabulary) {
    throw new MoestreamError(
      'BASELINE_REFUSED',
      `${request.baseline} is of a model of ${reader.header.vocabulary} tokens, this one has ${vocabulary}`,
    );
  }
  const { writeBaseline: path } = request;
  const writer = path === undefined ? undefined : new BaselineWriter(path, { ...windows, vocabulary });
  try {
    const result = await scoreAll(engine, windows, request.decode === true, { reader, writer }, listeners);
    writer?.finish();
    return result;
  } catch (error) {
    writer?.discard();
    throw error;
  }
}

interface Baselines {
  readonly reader: BaselineReader | undefined;
  readonly writer: BaselineWriter | undefined;
}

async function scoreAll(
  engine: Engine,
  windows: Windows,
  decode: boolean,
  { reader, writer }: Baselines,
  { signal, onProgress }: PerplexityListeners,
): Promise<PerplexityMeasurement> {
  const { windowTokens, from } = windows;
  const total = windows.windows * rowsPerWindow(windows);
  const sum = new LikelihoodSum(total);
  const divergence = reader === undefined ? undefined : new DivergenceSum();
  const beganMillis = performance.now();
  let [bytesRead, lookups, hits] = [0, 0, 0];
  for (let window = 0; window < windows.windows; window++) {
    const ids = windows.ids.slice(window * windowTokens, (window + 1) * windowTokens);
    // The last id is only foreseen: nothing behind it is.
    const fed = ids.slice(0, -1);
    const onRow = (row: Float32Array, position: number): void => {
      const token = ids[position + 1]!;
      const mass = logSumExp(row);
      sum.add(mass - row[token]!);
      writer?.add(row, mass);
      if (reader !== undefined) divergence!.add(reader.next(), row, mass, token);
      onProgress?.(sum.count, total, sum.perplexity);
    };
    const { compute } = await engine.logits(fed, onRow, {
      from,
      decodeFrom: decode ? 1 : fed.length,
      ...(signal === undefined ? {} : { signal }),
    });
    bytesRead += compute.bytesRead;
    lookups += compute.lookups;
    hits += compute.hits;
  }
  invariant(sum.count === total, 'every row is scored');
  return {
    ...sum.result(),
    method: `${describeWindows(windows)}${decode ? ', computed token by token' : ''}`,
    millis: performance.now() - beganMillis,
    bytesRead,
    hitRate: lookups === 0 ? 1 : hits / lookups,
    ...(divergence === undefined ? {} : { divergence: divergence.result() }),
  };
}

/** Likelihoods in the order of the text. */
class LikelihoodSum {
  count = 0;
  private readonly nll: Float64Array;
  private sum = 0;

  constructor(total: number) {
    this.nll = new Float64Array(total);
  }

  get perplexity(): number {
    return Math.exp(this.sum / this.count);
  }

  add(nll: number): void {
    this.nll[this.count++] = nll;
    this.sum += nll;
  }

  result(): Pick<
    PerplexityMeasurement,
    'perplexity' | 'error' | 'meanNll' | 'meanNllError' | 'scoredTokens' | 'digest'
  > {
    const { nll, count } = this;
    const meanNll = this.sum / count;
    const squares = nll.reduce((sum, value) => sum + (value - meanNll) ** 2, 0);
    const meanNllError = count < 2 ? 0 : Math.sqrt(squares / (count - 1) / count);
    const perplexity = Math.exp(meanNll);
    return {
      perplexity,
      error: meanNllError * perplexity,
      meanNll,
      meanNllError,
      scoredTokens: count,
      digest: createHash('sha256').update(nll).digest('hex').slice(0, 16),
    };
  }
}
