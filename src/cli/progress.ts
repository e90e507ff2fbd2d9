/**
 * The progress of work that takes minutes: one line on a terminal that is written over again, one line per finished file
 * when stderr is something else. The line fits 60 columns.
 */
import { formatBytes } from '../pipeline/memory.ts';
import { say } from './output.ts';

const INTERVAL_MILLIS = 100;
const BAR_CELLS = 12;
const COLUMNS_MAX = 60;
/** Before this the speed says nothing. */
const WARM_UP_MILLIS = 1000;

export interface ProgressMeter {
  onProgress(doneBytes: number, totalBytes: number): void;
  onFile(name: string, sizeBytes: number): void;
  onNotice(sentence: string): void;
  /** Takes the line off the terminal. */
  clear(): void;
}

export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (value: number): string => String(value).padStart(2, '0');
  return hours > 0 ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** `[######      ]  47 %  84.1 GB of 179 GB  1.23 GB/s  1:17` */
export function progressLine(
  doneBytes: number,
  totalBytes: number,
  bytesPerSecond: number | undefined,
): string {
  const share = totalBytes === 0 ? 1 : doneBytes / totalBytes;
  const bar = '#'.repeat(Math.floor(share * BAR_CELLS)).padEnd(BAR_CELLS);
  const percent = String(Math.floor(share * 100)).padStart(3);
  const amount = `${formatBytes(Math.floor(doneBytes))} of ${formatBytes(totalBytes)}`;
  const speed =
    bytesPerSecond === undefined || bytesPerSecond <= 0
      ? ''
      : `  ${(bytesPerSecond / 1e9).toFixed(2)} GB/s  ${duration((totalBytes - doneBytes) / bytesPerSecond)}`;
  return `[${bar}] ${percent} %  ${amount}${speed}`.slice(0, COLUMNS_MAX);
}

export function progressMeter(quiet: boolean, verb: string): ProgressMeter {
  const isTerminal = process.stderr.isTTY === true && !quiet;
  let first: { millis: number; bytes: number } | undefined;
  let printedMillis = Number.NEGATIVE_INFINITY;
  const clear = (): void => {
    if (isTerminal) process.stderr.write('\r\x1b[K');
  };
  const onProgress = (doneBytes: number, totalBytes: number): void => {
    if (!isTerminal) return;
    const now = performance.now();
    // What a resumed pack finds done comes at once and is no speed: the clock starts behind it.
    if (first === undefined || now - first.millis < 1) first = { millis: now, bytes: doneBytes };
    if (now - printedMillis < INTERVAL_MILLIS) return;
    printedMillis = now;
    const elapsed = now - first.millis;
    const speed = elapsed < WARM_UP_MILLIS ? undefined : ((doneBytes - first.bytes) * 1e3) / elapsed;
    process.stderr.write(`\r${progressLine(doneBytes, totalBytes, speed)}\x1b[K`);
  };
  const sayBetween = (sentence: string): void => {
    if (quiet) return;
    clear();
    say(sentence);
  };
  return {
    onProgress,
    onFile: (name, sizeBytes) => {
      if (!isTerminal) sayBetween(`moestream: ${verb} ${name} (${formatBytes(sizeBytes)})`);
    },
    onNotice: (sentence) => sayBetween(`moestream: ${sentence}`),
    clear,
  };
}
