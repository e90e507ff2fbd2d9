/**
 * How many hints are worth a read.
 *
 * Measured in bytes of disk time, which needs no clock and is the same in a simulation: a prefetch gains what the router
 * then did not have to ask for, and costs what it pushed out of the cache and had to be read again, what demands waited
 * for, and a sixteenth of what it read for nothing (processor time and memory bandwidth). An epoch that gains doubles the
 * limit; one that loses halves it, below one to none. At none it rests, then probes one hint for one epoch; each probe
 * that loses doubles the rest, up to 64 epochs, so a predictor that is always wrong is listened to in one epoch of 65.
 *
 * With a fixed limit it only counts.
 */
import { HintInterest } from './hint-interest.ts';

/** Layer steps of an epoch: enough prefetches to judge, and not a whole token of a deep model. */
const EPOCH_STEPS = 16;
const REST_EPOCHS_MIN = 2;
const REST_EPOCHS_MAX = 64;
const WASTE_SHARE = 1 / 16;
/** Decisions that the statistics keep. */
const DECISIONS_KEPT = 32;

export type ControllerAction = 'raise' | 'lower' | 'rest' | 'probe';

/** A change of the limit. */
export interface ControllerDecision {
  /** Layer steps of the run until then. */
  readonly atStep: number;
  readonly action: ControllerAction;
  /** Hints per layer from then on. */
  readonly limit: number;
  /** Of the epoch before. */
  readonly gainedBytes: number;
  readonly lostBytes: number;
}

export interface ControllerReport {
  /** `fixed`: the limit does not move. */
  readonly mode: 'auto' | 'fixed';
  /** Hints accepted per layer for one row, now. */
  readonly limit: number;
  readonly epochs: number;
  readonly raised: number;
  readonly lowered: number;
  readonly probes: number;
  /** Layer steps in which hints were accepted, of all. */
  readonly activeSteps: number;
  readonly steps: number;
  /** The last decisions, oldest first. */
  readonly decisions: readonly ControllerDecision[];
}

export class PrefetchController {
  /** Hints per layer that pay, as far as is known. */
  limit: number;
  private readonly interest = new HintInterest();
  private readonly auto: boolean;
  private readonly most: number;
  private issuedBytes = 0;
  private gainedBytes = 0;
  private lostBytes = 0;
  private stepsInEpoch = 0;
  private restEpochs = REST_EPOCHS_MIN;
  private restLeft = 0;
  private probing = false;
  private steps = 0;
  private activeSteps = 0;
  private epochs = 0;
  private raised = 0;
  private lowered = 0;
  private probes = 0;
  private decisions: ControllerDecision[] = [];

  /** `most` hints per layer; in `fixed` always, in `auto` at most. */
  constructor(mode: 'auto' | 'fixed', most: number) {
    this.auto = mode === 'auto';
    this.most = most;
    this.limit = this.auto ? Math.min(1, most) : most;
  }

  /** Hints that may be read per layer now. */
  get allowed(): number {
    return this.auto && !this.interest.listens ? 0 : this.limit;
  }

  /** What was learned about the predictor stays from run to run; the statistics begin anew. */
  beginRun(nowMillis: number): void {
    this.interest.beginRun(nowMillis);
    this.steps = 0;
    this.activeSteps = 0;
    this.epochs = 0;
    this.raised = 0;
    this.lowered = 0;
    this.probes = 0;
    this.decisions = [];
  }

  issued(bytes: number): void {
    this.issuedBytes += bytes;
  }

  /** Read ahead and wanted. */
  useful(bytes: number): void {
    this.gainedBytes += bytes;
  }

  /** Read again because of a prefetch, or waited for. */
  harmful(bytes: number): void {
    this.lostBytes += bytes;
  }

  wasted(bytes: number): void {
    this.lostBytes += bytes * WASTE_SHARE;
  }

  /** A layer has been computed. `waitedMicros` is what compute has waited for in this run. */
  endStep(nowMillis: number, waitedMicros: number): void {
    this.steps++;
    if (this.allowed > 0) this.activeSteps++;
    this.interest.endStep(nowMillis, waitedMicros);
    if (++this.stepsInEpoch < EPOCH_STEPS) return;
    this.epochs++;
    if (this.auto) this.decide();
    this.stepsInEpoch = 0;
    this.issuedBytes = 0;
    this.gainedBytes = 0;
    this.lostBytes = 0;
  }

  report(): ControllerReport {
    const { limit, epochs, raised, lowered, probes, activeSteps, steps } = this;
    const decisions = [...this.decisions];
    return {
      mode: this.auto ? 'auto' : 'fixed',
      limit,
      epochs,
      raised,
      lowered,
      probes,
      activeSteps,
      steps,
      decisions,
    };
  }

  private decide(): void {
    if (this.limit === 0) {
      if (--this.restLeft <= 0) this.probe();
      return;
    }
    const settled = this.gainedBytes + this.lostBytes > 0;
    if (this.issuedBytes === 0 && !settled) return;
    if (this.gainedBytes > this.lostBytes) this.raise();
    else this.lower();
  }

  private probe(): void {
    this.limit = 1;
    this.probing = true;
    this.probes++;
    this.note('probe');
  }

  private raise(): void {
    this.probing = false;
    this.restEpochs = REST_EPOCHS_MIN;
    if (this.limit === this.most) return;
    this.limit = Math.min(this.most, 2 * this.limit);
    this.raised++;
    this.note('raise');
  }

  private lower(): void {
    this.lowered++;
    this.limit >>= 1;
    if (this.limit > 0) {
      this.note('lower');
      return;
    }
    if (this.probing) this.restEpochs = Math.min(REST_EPOCHS_MAX, 2 * this.restEpochs);
    this.probing = false;
    this.restLeft = this.restEpochs;
    this.note('rest');
  }

  private note(action: ControllerAction): void {
    if (this.decisions.length === DECISIONS_KEPT) this.decisions.shift();
    const { steps: atStep, limit, gainedBytes, lostBytes } = this;
    this.decisions.push({ atStep, action, limit, gainedBytes, lostBytes });
  }
}
