/** When predictors are heard: told of epochs of exact times. */
import { describe, expect, it } from 'vitest';
import { HintInterest } from '../../dist/workers/hint-interest.js';

const STEPS = 16;
const STEP_MILLIS = 10;
const WAITS = 0.1;
const CALM = 0.01;

/** Whole epochs of a run; each is told by the share of its time in which compute waited. */
class Epochs {
  readonly interest = new HintInterest();
  private nowMillis = 1000;
  private waitedMicros = 0;

  constructor() {
    this.beginRun();
  }

  beginRun(): void {
    this.waitedMicros = 0;
    this.interest.beginRun(this.nowMillis);
  }

  pass(millis: number): void {
    this.nowMillis += millis;
  }

  epoch(waitShare: number): boolean {
    for (let step = 0; step < STEPS; step++) {
      this.nowMillis += STEP_MILLIS;
      this.waitedMicros += STEP_MILLIS * 1000 * waitShare;
      this.interest.endStep(this.nowMillis, this.waitedMicros);
    }
    return this.interest.listens;
  }

  epochs(count: number, waitShare: number): boolean[] {
    return Array.from({ length: count }, () => this.epoch(waitShare));
  }
}

describe('predictors', () => {
  it('are heard as long as compute waits', () => {
    expect(new Epochs().epochs(500, WAITS)).not.toContain(false);
  });

  it('are not heard any more where nothing is waited for without them', () => {
    expect(new Epochs().epochs(300, CALM).filter(Boolean)).toHaveLength(3);
  });

  it('are heard again as soon as an epoch has waited', () => {
    const epochs = new Epochs();
    epochs.epochs(50, CALM);
    expect(epochs.epoch(WAITS)).toBe(true);
    expect(epochs.epochs(4, CALM)).toEqual([true, true, true, false]);
  });

  it('that hide every wait are left out ever more rarely, at most one epoch in 65 in the end', () => {
    const epochs = new Epochs();
    const heard: boolean[] = [true];
    while (heard.length < 1000) heard.push(epochs.epoch(heard.at(-1)! ? CALM : WAITS));
    const trials = heard.flatMap((listens, epoch) => (listens ? [] : [epoch]));
    const distances = trials.slice(1).map((epoch, index) => epoch - trials[index]!);
    expect(distances.slice(0, 5)).toEqual([9, 17, 33, 65, 65]);
    expect(new Set(distances.slice(3))).toEqual(new Set([65]));
  });

  it('are not judged by the time between two runs', () => {
    const epochs = new Epochs();
    epochs.epochs(50, CALM);
    epochs.pass(1e6);
    epochs.beginRun();
    expect(epochs.epoch(WAITS)).toBe(true);
  });
});
