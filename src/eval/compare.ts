/**
 * Several models or settings beside each other: how well they foresee a text, how far their probabilities are from the
 * first one's, how large they are and how fast.
 *
 * Quality first: the first variant scores the text and its probabilities become the baseline of the others, which so score
 * the same ids. Then speed, in rounds that go through the variants in balanced order, each run in an engine of its own, so
 * that a machine that slows down favours none. A variant that fails keeps its row with the reason; the others go on.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import type { OpenOptions } from '../engine/options.ts';
import { MoestreamError } from '../errors.ts';
import { openModel } from '../model/model.ts';
import type { Divergence } from './kl.ts';
import {
  measureRun,
  positionsOf,
  type RunListeners,
  type RunMeasurement,
  type RunShape,
} from './measure-run.ts';
import { measurePerplexity, type PerplexityMeasurement } from './perplexity.ts';
import { balancedOrder } from './schedule.ts';
import { type Summary, summarise } from './statistics.ts';
import type { TokenSource } from './token-source.ts';
import type { ScoringMethod } from './windows.ts';

export interface CompareVariant {
  readonly options: Omit<OpenOptions, 'onNotice' | 'contextLength'>;
  /** What of it was asked for, by flag: for the table. */
  readonly given: Readonly<Record<string, string>>;
}

export interface CompareRequest {
  readonly variants: readonly CompareVariant[];
  readonly source: TokenSource;
  readonly method: ScoringMethod;
  readonly decode: boolean;
  /** 0: no speed is measured. */
  readonly rounds: number;
  readonly shape: RunShape;
}

export interface CompareRow {
  readonly name: string;
  readonly options: CompareVariant['options'];
  readonly given: CompareVariant['given'];
  readonly sizeBytes: number;
  readonly expertsPerToken: number;
  /** Experts that one token needs, whether they are in the cache or not. */
  readonly expertBytesPerToken: number;
  readonly quality?: Omit<PerplexityMeasurement, 'divergence'>;
  /** From the first row's probabilities; absent in the first row and where the vocabularies differ. */
  readonly divergence?: Divergence;
  readonly speed?: CompareSpeed;
  /** Why it has no more than this. */
  readonly failure?: { readonly code: string; readonly message: string };
}

export interface CompareSpeed {
  readonly prefillTokensPerSecond: Summary;
  readonly decodeTokensPerSecond: Summary;
  /** Of the answer's tokens, warm. */
  readonly bytesReadPerToken: number;
  readonly hitRate: number;
}

export interface CompareListeners extends RunListeners {
  readonly onProgress?: (done: number, total: number, doing: string) => void;
}

type Result = { -readonly [Name in keyof CompareRow]: CompareRow[Name] };

/** Throws only for what no variant can be compared with: the first one's failure, and ABORTED. */
export async function compare(
  request: CompareRequest,
  listeners: CompareListeners = {},
): Promise<CompareRow[]> {
  const rows = request.variants.map(describe);
  const folder = mkdtempSync(join(tmpdir(), 'moestream-compare-'));
  try {
    await scoreEach(request, rows, join(folder, 'first.kl'), listeners);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  if (request.rounds > 0) await timeEach(request, rows, listeners);
  return rows;
}

function describe({ options, given }: CompareVariant): Result {
  const { model, expertsPerToken } = options;
  const opened = openModel(model, expertsPerToken === undefined ? {} : { expertsPerToken });
  const used = opened.hyperparameters.expertsPerToken;
  return {
    name: basename(model).replace(/\.gguf$/, ''),
    options,
    given,
    sizeBytes: opened.files.reduce((sum, file) => sum + file.sizeBytes, 0),
    expertsPerToken: used,
    expertBytesPerToken: opened.tensors.experts.reduce(
      (sum, { gate, up, down }) => sum + used * (gate.byteLength + up.byteLength + down.byteLength),
      0,
    ),
  };
}

const vocabularyOf = (model: string): number => openModel(model).hyperparameters.vocabulary;

async function scoreEach(
  { variants, source, method, decode }: CompareRequest,
  rows: Result[],
  baseline: string,
  listeners: CompareListeners,
): Promise<void> {
  const first = variants[0]!;
  const vocabulary = vocabularyOf(first.options.model);
  for (const [index, { options }] of variants.entries()) {
    const { name } = rows[index]!;
    const comparable = vocabularyOf(options.model) === vocabulary;
    const own = {
      source,
      method,
      ...(index === 0 && variants.length > 1 ? { writeBaseline: baseline } : {}),
    };
    if (!comparable) {
      listeners.notice?.(
        `${name} has another vocabulary than ${rows[0]!.name}: their perplexities must not be compared`,
      );
    }
    const score = async (): Promise<void> => {
      const { divergence, ...quality } = await measurePerplexity(
        { options, decode, ...(index > 0 && comparable ? { baseline } : own) },
        {
          ...listeners,
          onProgress: (done, total) => listeners.onProgress?.(done, total, `PPL of ${name}`),
        },
      );
      rows[index]!.quality = quality;
      if (divergence !== undefined) rows[index]!.divergence = divergence;
    };
    if (index === 0) await score();
    else await keepFailure(rows[index]!, score);
  }
}

async function keepFailure(row: Result, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!MoestreamError.is(error) || error.code === 'ABORTED') throw error;
    row.failure = { code: error.code, message: error.message };
  }
}

async function timeEach(
  { variants, source, rounds, shape }: CompareRequest,
  rows: Result[],
  listeners: CompareListeners,
): Promise<void> {
  const runs: RunMeasurement[][] = variants.map(() => []);
  let done = 0;
  for (const order of balancedOrder(variants.length, rounds)) {
    for (const index of order) {
      const { options } = variants[index]!;
      listeners.onProgress?.(done++, rounds * variants.length, `speed of ${rows[index]!.name}`);
      if (rows[index]!.failure !== undefined) continue;
      await keepFailure(rows[index]!, async () => {
        runs[index]!.push(
          await measureRun(
            { options: { ...options, contextLength: positionsOf(shape) }, source, ...shape },
            listeners,
          ),
        );
      });
    }
  }
  for (const [index, found] of runs.entries()) {
    if (rows[index]!.failure === undefined) rows[index]!.speed = speedOf(found);
  }
}

function speedOf(runs: readonly RunMeasurement[]): CompareSpeed {
  const last = runs.at(-1)!;
  return {
    prefillTokensPerSecond: summarise(runs.map((run) => run.prefill!.tokensPerSecond)),
    decodeTokensPerSecond: summarise(runs.map((run) => run.decode!.tokensPerSecond)),
    bytesReadPerToken: last.decode!.bytesReadPerToken,
    hitRate: last.decode!.hitRate,
  };
}
