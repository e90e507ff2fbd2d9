/**
 * The predict stage as the pipeline holds it: the one stage that a run can do without.
 *
 * When it fails, at its start, in a run or between runs, that is said once and the model goes on without hints. Only what
 * the caller got wrong (a state file of another model) is an error. With nobody to predict there is no thread at all.
 */
import { createHash } from 'node:crypto';
import { invariant, MoestreamError } from '../errors.ts';
import type { Model } from '../model/model.ts';
import type { BackendConfig } from '../native.ts';
import * as messages from '../pipeline/messages.ts';
import type { ResidentPlan, ResidentTensor } from '../pipeline/residents.ts';
import { type RingHandle, SpscRing } from '../pipeline/ring.ts';
import type { Observation } from '../pipeline/trace.ts';
import type { ComputeSetup } from '../workers/compute.ts';
import {
  type LookaheadSetup,
  NO_PREDICTIONS,
  type PredictRun,
  type PredictSetup,
  type PredictTotals,
  type RouterWeights,
} from '../workers/predict-contract.ts';
import { STREAM_ROWS_MAX } from '../workers/predictors/lookahead.ts';
import type { EngineSettings } from './options.ts';
import type { Prediction } from './prediction.ts';
import { StageHandle } from './stages.ts';

/** The rings between compute and predictor. */
export interface ForecastRings {
  readonly routes: SpscRing;
  readonly hints: SpscRing;
  /** Only for predictors that look at residual streams. */
  readonly streams: SpscRing | undefined;
}

export class Forecaster {
  readonly rings: ForecastRings | undefined;
  private readonly prediction: Prediction | undefined;
  private readonly config: BackendConfig;
  private readonly notice: (sentence: string) => void;
  private readonly stage: StageHandle<PredictSetup, PredictRun, PredictTotals> | undefined;
  private lost = false;
  private ending: Promise<void> | undefined;

  constructor(
    { predict, notice }: EngineSettings,
    config: BackendConfig,
    observe: (role: 'predict') => Observation | undefined,
  ) {
    this.prediction = predict;
    this.config = config;
    this.notice = notice;
    // A chunk that reads its next layer ahead does so by itself.
    if (predict === undefined || predict.names.length === 0) return;
    const streamWords = messages.STREAM_VALUES + STREAM_ROWS_MAX * config.hidden;
    this.rings = {
      routes: SpscRing.create(messages.ROUTE_SLOTS, messages.ROUTE_IDS + config.experts),
      hints: SpscRing.create(messages.HINT_SLOTS, messages.HINT_WORDS),
      streams: predict.names.includes('lookahead')
        ? SpscRing.create(messages.STREAM_SLOTS, streamWords)
        : undefined,
    };
    this.stage = new StageHandle('predict', observe('predict'));
  }

  /** Whether somebody predicts, as far as is known. */
  get works(): boolean {
    return this.stage !== undefined && !this.lost;
  }

  get ringList(): SpscRing[] {
    if (this.rings === undefined) return [];
    const { routes, hints, streams } = this.rings;
    return streams === undefined ? [routes, hints] : [routes, hints, streams];
  }

  /** How many hints compute reads, as measuring finds or as many as a token has experts; and whether chunks read ahead. */
  get acceptance(): Pick<ComputeSetup, 'prefetch' | 'prefetchMost' | 'predictorsLearn' | 'readsUnion'> {
    const { prediction } = this;
    const names = prediction?.names ?? [];
    return {
      prefetch: prediction?.auto === true ? 'auto' : 'fixed',
      prefetchMost: names.length > 0 ? this.config.expertsPerToken : 0,
      predictorsLearn: names.some((name) => name !== 'lookahead'),
      readsUnion: prediction?.union === true,
    };
  }

  /** Throws what the caller must mend. `dense` are the segments of the dense weights, loaded. */
  async setUp(
    model: Model,
    control: Int32Array<SharedArrayBuffer>,
    residents: ResidentPlan,
    dense: readonly Uint8Array<SharedArrayBuffer>[],
  ): Promise<void> {
    const { stage, rings, prediction, config } = this;
    if (stage === undefined || rings === undefined || prediction === undefined) return;
    const { statePath } = prediction;
    const setup: PredictSetup = {
      control,
      routes: rings.routes.handle(),
      hints: rings.hints.handle(),
      shape: { layers: config.layers, experts: config.experts, expertsPerToken: config.expertsPerToken },
      predictors: prediction.names,
      depth: prediction.depth,
      lookahead: rings.streams && lookaheadSetup(config, rings.streams.handle(), residents, dense),
      state: statePath === undefined ? undefined : { path: statePath, fingerprint: identityOf(model) },
    };
    try {
      await stage.setUp(setup);
    } catch (error) {
      if (MoestreamError.is(error) && (error.code === 'STATE_REFUSED' || error.code === 'USAGE')) throw error;
      this.lose(error);
    }
  }

  /** An end that was not a good one changes no answer. */
  private readonly sayLate = (error: MoestreamError): void => this.notice(error.message);

  /** Never rejects. */
  async run(): Promise<PredictTotals> {
    const { stage } = this;
    if (stage === undefined || this.lost) return NO_PREDICTIONS;
    try {
      return await stage.run({ saveState: false });
    } catch (error) {
      this.lose(error);
      return NO_PREDICTIONS;
    }
  }

  /** Goes on without it. */
  lose(error: unknown): void {
    if (this.lost) return;
    this.lost = true;
    if (this.ending !== undefined) return;
    const reason = error instanceof Error ? error.message : String(error);
    this.notice(`going on without prediction: ${reason}`);
    this.ending = this.stage?.end(this.sayLate);
  }

  /** Keeps what was learned, where the caller asked for that, and ends the thread. The stop words must be set already. */
  async end(): Promise<void> {
    const { stage } = this;
    if (stage === undefined) return;
    if (!this.lost && this.prediction?.statePath !== undefined) {
      await stage.run({ saveState: true }).catch((error: unknown) => {
        const reason = error instanceof Error ? error.message : String(error);
        this.notice(`what the predictor learned is not kept: ${reason}`);
      });
    }
    this.ending ??= stage.end(this.sayLate);
    await this.ending;
  }
}

function lookaheadSetup(
  config: BackendConfig,
  streams: RingHandle,
  { tensors }: ResidentPlan,
  dense: readonly Uint8Array<SharedArrayBuffer>[],
): LookaheadSetup {
  const find = (layer: number, ...names: readonly string[]): ResidentTensor => {
    const found = tensors.find((each) => each.layer === layer && names.includes(each.name));
    invariant(found !== undefined, `layer ${layer} has ${names[0]}`);
    return found;
  };
  const bytesOf = ({ parts }: ResidentTensor): readonly Uint8Array<SharedArrayBuffer>[] =>
    parts.map(({ segment, segmentBytes, byteLength }) =>
      dense[segment]!.subarray(segmentBytes, segmentBytes + byteLength),
    );
  const routers = Array.from({ length: config.layers }, (_, layer): RouterWeights => {
    const norm = find(layer, 'post_attention_norm.weight', 'ffn_norm.weight');
    const router = find(layer, 'ffn_gate_inp.weight');
    return {
      normType: norm.type.id,
      norm: bytesOf(norm)[0]!,
      normChange: norm.change,
      routerType: router.type.id,
      router: bytesOf(router),
    };
  });
  return { hidden: config.hidden, rmsEpsilon: config.rmsEpsilon, streams, routers };
}

/** Which model something was learned from: its metadata and dense tensors' shapes, the same plain, split and packed. */
export function identityOf({ source, tensors, hyperparameters }: Model): Uint8Array {
  const hash = createHash('sha256');
  if ('stored' in source) hash.update(JSON.stringify({ ...hyperparameters, name: undefined }));
  else {
    for (const key of [...source.metadata.keys].sort()) {
      if (!key.startsWith('split.')) hash.update(source.metadata.pairBytes(key));
    }
  }
  const names = tensors.dense.map(
    ({ layer, name, type, rows, cols }) => `${layer} ${name} ${type.name} ${rows}x${cols}`,
  );
  hash.update(names.sort().join('\n'));
  hash.update(`\n${hyperparameters.expertsPerToken}`);
  return hash.digest();
}
