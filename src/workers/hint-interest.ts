/**
 * Whether predictors are worth listening to.
 *
 * Predicting takes processor time: 2 to 5 % of a token where two cores compute without a pause (docs/findings.md). What it
 * can gain is the time in which compute waits for reads. While compute waits, predictors are heard. While it does not, they
 * do well or there is nothing to gain, and only an epoch without them tells: if compute does not wait in that one either,
 * nobody predicts until it does. Each trial that answers "they do well" doubles the calm epochs before the next, up to 64.
 *
 * It decides when reads are asked for, never what is computed, so a clock may have a say.
 */

/** Layer steps of an epoch. */
const EPOCH_STEPS = 16;
/** Of an epoch's time: with less waiting than that there is nothing to gain. */
const WAIT_SHARE_MIN = 1 / 32;
const CALM_EPOCHS_MIN = 4;
const CALM_EPOCHS_MAX = 64;

type State = 'hears' | 'tries without' | 'rests';

export class HintInterest {
  private state: State = 'hears';
  private steps = 0;
  private epochBeganMillis = 0;
  private waitedBeforeMicros = 0;
  /** Epochs without waiting since predictors were last not heard, and after how many they are not. */
  private calmEpochs = 0;
  private calmEpochsAllowed = CALM_EPOCHS_MIN;

  get listens(): boolean {
    return this.state === 'hears';
  }

  /** What has been found stays from run to run; the time between runs is in no epoch. */
  beginRun(nowMillis: number): void {
    this.beginEpoch(nowMillis, 0);
  }

  /** A layer has been computed. `waitedMicros` is what compute has waited for in this run. */
  endStep(nowMillis: number, waitedMicros: number): void {
    if (++this.steps < EPOCH_STEPS) return;
    const tookMicros = (nowMillis - this.epochBeganMillis) * 1000;
    this.decide(waitedMicros - this.waitedBeforeMicros >= WAIT_SHARE_MIN * tookMicros);
    this.beginEpoch(nowMillis, waitedMicros);
  }

  private beginEpoch(nowMillis: number, waitedMicros: number): void {
    this.steps = 0;
    this.epochBeganMillis = nowMillis;
    this.waitedBeforeMicros = waitedMicros;
  }

  private decide(waited: boolean): void {
    if (this.state === 'hears') {
      if (waited || ++this.calmEpochs < this.calmEpochsAllowed) return;
      this.state = 'tries without';
    } else if (waited) {
      const doWell = this.state === 'tries without';
      this.calmEpochsAllowed = doWell
        ? Math.min(CALM_EPOCHS_MAX, 2 * this.calmEpochsAllowed)
        : CALM_EPOCHS_MIN;
      this.calmEpochs = 0;
      this.state = 'hears';
    } else this.state = 'rests';
  }
}
