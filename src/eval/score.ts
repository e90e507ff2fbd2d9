/** What a run is worth: one number, more is better. */
import { MoestreamError } from '../errors.ts';
import type { RunMeasurement } from './measure-run.ts';

/** Tokens a second of the answer, of the prompt, or of both one after the other. */
export const SCORES = ['decode', 'prefill', 'total'] as const;
export type Score = (typeof SCORES)[number];

/** Throws USAGE when the run has no such part. */
export function scoreOf(run: RunMeasurement, score: Score): number {
  const parts = { decode: [run.decode], prefill: [run.prefill], total: [run.prefill, run.decode] }[score];
  let tokens = 0;
  let millis = 0;
  for (const part of parts) {
    if (part === undefined) {
      throw new MoestreamError('USAGE', `the score is ${score}, but the run has no such part`, {
        hint: 'Give the prompt (-p) and the answer (-n) more than 0 tokens, or choose another score.',
      });
    }
    tokens += part.tokens;
    millis += part.millis;
  }
  return (tokens * 1000) / millis;
}
