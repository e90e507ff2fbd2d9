/**
 * Writes a report's file so that what stands under its name is whole.
 *
 * The text goes piece by piece into a file beside it, which takes the name only when every byte is on its way to the disk:
 * a full disk or Ctrl-C leaves what was there before. Memory stays at one piece. Failures are DISK_FULL or WRITE_FAILED.
 */
import { closeSync, openSync, renameSync, rmSync, statSync, writeSync } from 'node:fs';
import { MoestreamError } from '../errors.ts';

/** Pieces are gathered to this much before they are written. */
const GATHERED_CHARACTERS = 256 * 1024;

function writeError(path: string, cause: unknown): MoestreamError {
  const code = (cause as NodeJS.ErrnoException | null)?.code ?? 'unknown error';
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new MoestreamError('DISK_FULL', `${path}: the disk is full (${code})`, {
      hint: 'Free some space, or write to another disk.',
      cause,
    });
  }
  return new MoestreamError('WRITE_FAILED', `${path} cannot be written (${code})`, {
    hint: 'Check that the folder exists and may be written to.',
    cause,
  });
}

function writeAll(file: number, text: string): void {
  const bytes = Buffer.from(text, 'utf8');
  for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at);
}

/** Writes the pieces one behind the other; returns how many bytes that were. */
export function writeReport(path: string, pieces: Iterable<string>): number {
  // A device or a pipe has no name to take over.
  const special = statSync(path, { throwIfNoEntry: false })?.isFile() === false;
  const partial = special ? path : `${path}.${process.pid}.partial`;
  let file: number;
  try {
    file = openSync(partial, 'w');
  } catch (cause) {
    throw writeError(path, cause);
  }
  try {
    let gathered = '';
    let bytesWritten = 0;
    const flush = (): void => {
      writeAll(file, gathered);
      bytesWritten += Buffer.byteLength(gathered);
      gathered = '';
    };
    for (const piece of pieces) {
      gathered += piece;
      if (gathered.length >= GATHERED_CHARACTERS) flush();
    }
    flush();
    closeSync(file);
    if (!special) renameSync(partial, path);
    return bytesWritten;
  } catch (cause) {
    if (!special) rmSync(partial, { force: true });
    // What made the pieces may fail for reasons of its own.
    if (MoestreamError.is(cause)) throw cause;
    throw writeError(path, cause);
  }
}
