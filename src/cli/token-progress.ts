/** The progress of work that counts tokens: one line on a terminal that is written over again, nothing elsewhere. */
import { say } from './output.ts';
import { duration } from './progress.ts';

const INTERVAL_MILLIS = 100;
const BAR_CELLS = 12;
const COLUMNS_MAX = 60;
/** Before this the speed says nothing. */
const WARM_UP_MILLIS = 1000;

export interface TokenMeter {
  onProgress(done: number, total: number, note?: string): void;
  onNotice(sentence: string): void;
  /** Takes the line off the terminal. */
  clear(): void;
}

/** `[######      ]  47 %  964 of 2048  0:17  PPL 12.34` */
export function tokenLine(
  done: number,
  total: number,
  secondsLeft: number | undefined,
  note: string,
): string {
  const share = total === 0 ? 1 : done / total;
  const bar = '#'.repeat(Math.floor(share * BAR_CELLS)).padEnd(BAR_CELLS);
  const percent = String(Math.floor(share * 100)).padStart(3);
  const left = secondsLeft === undefined ? '' : `  ${duration(secondsLeft)}`;
  return `[${bar}] ${percent} %  ${done} of ${total}${left}${note === '' ? '' : `  ${note}`}`.slice(
    0,
    COLUMNS_MAX,
  );
}

export function tokenMeter(quiet: boolean): TokenMeter {
  const isTerminal = process.stderr.isTTY === true && !quiet;
  let first: { readonly millis: number; readonly done: number } | undefined;
  let last = 0;
  let printedMillis = Number.NEGATIVE_INFINITY;
  let printed = false;
  const clear = (): void => {
    if (printed) process.stderr.write('\r\x1b[K');
    printed = false;
  };
  return {
    onProgress: (done, total, note = '') => {
      if (!isTerminal) return;
      const now = performance.now();
      // Work that begins anew begins a new estimate.
      if (first === undefined || done < last) first = { millis: now, done };
      last = done;
      if (now - printedMillis < INTERVAL_MILLIS) return;
      printedMillis = now;
      const elapsed = now - first.millis;
      const left =
        elapsed < WARM_UP_MILLIS || done === first.done
          ? undefined
          : ((total - done) * elapsed) / (done - first.done) / 1000;
      process.stderr.write(`\r${tokenLine(done, total, left, note)}\x1b[K`);
      printed = true;
    },
    onNotice: (sentence) => {
      if (quiet) return;
      clear();
      say(`moestream: ${sentence}`);
    },
    clear,
  };
}
