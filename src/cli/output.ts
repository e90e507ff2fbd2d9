/**
 * What goes to the terminal: results to stdout, everything else to stderr.
 *
 * A reader that goes away (`moestream generate ... | head`) ends the work quietly; a slow one slows it down.
 */
import { once } from 'node:events';
import { MoestreamError } from '../errors.ts';

/** Fires when stdout's reader is gone. */
const pipeClosed = new AbortController();

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') pipeClosed.abort(new Error('stdout is closed'));
  else throw error;
});

export const stdoutClosed: AbortSignal = pipeClosed.signal;

/** Writes and waits while the reader is slow. */
export async function print(text: string | Uint8Array): Promise<void> {
  if (text.length === 0 || stdoutClosed.aborted) return;
  if (process.stdout.write(text)) return;
  await once(process.stdout, 'drain', { signal: stdoutClosed }).catch((error: unknown) => {
    // The reader has gone: whoever watches `stdoutClosed` ends the work.
    if (!stdoutClosed.aborted) throw error;
  });
}

export function say(sentence: string): void {
  process.stderr.write(`${sentence}\n`);
}

/** One sentence, and the hint on a line of its own. */
export function describeError(error: unknown): string {
  if (MoestreamError.is(error)) {
    const hint = error.hint === undefined ? '' : `\n  ${error.hint}`;
    return `moestream: ${error.message} (${error.code})${hint}`;
  }
  return `moestream: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
}

/** A table with columns as wide as their content; numbers to the right. */
export function table(rows: readonly (readonly (string | number)[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, String(cell).length);
    });
  }
  const line = (row: readonly (string | number)[]): string =>
    row
      .map((cell, column) =>
        typeof cell === 'number' ? String(cell).padStart(widths[column]!) : cell.padEnd(widths[column]!),
      )
      .join('  ')
      .trimEnd();
  return `${rows.map(line).join('\n')}\n`;
}
