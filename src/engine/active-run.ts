/**
 * A run under way: what its stages promised, and how it ends.
 *
 * Whatever fails first ends the run and is what the driver is told; all stages are at rest before it is. An abort is such
 * a failure.
 */
import { MoestreamError } from '../errors.ts';
import type { ComputeTotals } from '../workers/compute.ts';
import type { PredictTotals } from '../workers/predict-contract.ts';
import type { SampleTotals } from '../workers/sample.ts';

/** What one run did, by stage. */
export interface RunTotals {
  readonly compute: ComputeTotals;
  /** All zero where nobody predicts, or where the predictor was lost in this run or before. */
  readonly predict: PredictTotals;
  readonly sample: SampleTotals | undefined;
}

export interface StageRuns {
  readonly predict: Promise<PredictTotals>;
  readonly sample: Promise<SampleTotals | undefined>;
  readonly compute: Promise<ComputeTotals>;
}

/** A run under way, as the one who drives it sees it. */
export class ActiveRun {
  private failure: { readonly error: unknown } | undefined;
  private readonly stages: StageRuns;
  private readonly hooks: { stop(): void; ended(): void };
  private readonly cleanups: (() => void)[] = [];

  constructor(stages: StageRuns, hooks: { stop(): void; ended(): void }) {
    this.stages = stages;
    this.hooks = hooks;
    for (const stage of Object.values(stages)) stage.catch((error: unknown) => this.fail(error));
  }

  /** Notes the first failure and stops the run; `end` throws it. */
  fail(error: unknown): void {
    this.failure ??= { error };
    this.hooks.stop();
  }

  /** The driver looks at this whenever it wakes. */
  get failed(): boolean {
    return this.failure !== undefined;
  }

  onEnd(cleanup: () => void): void {
    this.cleanups.push(cleanup);
  }

  private async rest(): Promise<void> {
    this.hooks.stop();
    await Promise.allSettled(Object.values(this.stages));
    for (const cleanup of this.cleanups.splice(0)) cleanup();
    this.hooks.ended();
  }

  /** Ends the run for a driver that does not come back; if it does, it is told. */
  async abandon(): Promise<void> {
    this.fail(new MoestreamError('ENGINE_STATE', 'the engine was closed during a generation'));
    await this.rest();
  }

  /** Stops what still runs and waits until every stage is at rest. Throws the first failure, if there was one. */
  async end(): Promise<RunTotals> {
    await this.rest();
    if (this.failure !== undefined) throw this.failure.error;
    const { compute, predict, sample } = this.stages;
    return { compute: await compute, predict: await predict, sample: await sample };
  }
}

/** Ends the run when the signal says so; returns what takes that back. */
export function abortWith(signal: AbortSignal, active: ActiveRun): () => void {
  const abort = (): void => {
    active.fail(new MoestreamError('ABORTED', 'the caller ended it', { cause: signal.reason }));
  };
  if (signal.aborted) abort();
  signal.addEventListener('abort', abort, { once: true });
  return () => signal.removeEventListener('abort', abort);
}
