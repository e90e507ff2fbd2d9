/** Command line values: parsing with sentences that name the option's value. */
import { readFileSync } from 'node:fs';
import { InvalidArgumentError } from 'commander';
import { MoestreamError } from '../errors.ts';
import { parseBytes } from '../pipeline/memory.ts';

/** What every command takes for a model. */
export const MODEL_ARGUMENT = 'GGUF file or any part of a split set, checkpoint folder, or packed folder';

/** A number; `-s 1e3` and `0x10` are numbers too. */
export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value))
    throw new InvalidArgumentError(`"${text}" is not a number.`);
  return value;
}

export function integer(text: string): number {
  const value = number(text);
  if (!Number.isInteger(value)) throw new InvalidArgumentError(`"${text}" is not a whole number.`);
  return value;
}

export function size(text: string): number {
  try {
    return parseBytes(text);
  } catch (error) {
    throw new InvalidArgumentError(
      MoestreamError.is(error) ? `${error.message}. ${error.hint}` : String(error),
    );
  }
}

/** For options that may be given several times. */
export function collect(text: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), text];
}

/** "1,2,3" or one id per line or blank-separated. */
export function tokenIds(text: string): number[] {
  const ids = text
    .split(/[\s,]+/)
    .filter((part) => part !== '')
    .map(Number);
  const wrong = ids.findIndex((id) => !Number.isInteger(id) || id < 0);
  if (wrong >= 0) throw new MoestreamError('USAGE', `entry ${wrong + 1} of the token ids is not a token id`);
  return ids;
}

/** The text of a file, or of standard input for "-". */
export function readText(path: string): string {
  try {
    return readFileSync(path === '-' ? 0 : path, 'utf8');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MoestreamError('USAGE', `${path === '-' ? 'standard input' : path} cannot be read: ${reason}`, {
      cause,
    });
  }
}
