/** What the process ends with. Stable: scripts depend on it. */
import type { ErrorCode } from '../errors.ts';

export const EXIT_OK = 0;
export const EXIT_FAILURE = 1;
export const EXIT_USAGE = 2;
export const EXIT_MODEL = 3;
export const EXIT_PLAN = 4;
/** 128 and the signal's number, as shells count. */
export const EXIT_INTERRUPTED = 130;
export const EXIT_PIPE_CLOSED = 141;
export const EXIT_TERMINATED = 143;

const CODES: Partial<Record<ErrorCode, number>> = {
  USAGE: EXIT_USAGE,
  MODEL_NOT_FOUND: EXIT_MODEL,
  MODEL_INVALID: EXIT_MODEL,
  MODEL_UNSUPPORTED: EXIT_MODEL,
  PLAN_INVALID: EXIT_USAGE,
  TRACE_INVALID: EXIT_USAGE,
  PLAN_REFUSED: EXIT_PLAN,
  ABORTED: EXIT_INTERRUPTED,
};

export function exitCodeOf(code: ErrorCode): number {
  return CODES[code] ?? EXIT_FAILURE;
}
