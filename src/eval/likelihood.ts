/** From a row of logits to probabilities, in float64 and in one order, so that the same bits give the same score. */
import { MoestreamError } from '../errors.ts';

/** log of the sum of exp over the row: the log-probability of id t is `row[t] - logSumExp(row)`. */
export function logSumExp(row: Float32Array): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < row.length; id++) if (row[id]! > largest) largest = row[id]!;
  let sum = 0;
  for (let id = 0; id < row.length; id++) sum += Math.exp(row[id]! - largest);
  const result = largest + Math.log(sum);
  // NaN anywhere, or an infinity, ends here: no score is better than a wrong one.
  if (Number.isFinite(result)) return result;
  throw new MoestreamError('INTERNAL', 'the logits hold a value that is not a number', {
    hint: 'The model file may be damaged; check it against its published checksum.',
  });
}

/** The id of the largest, the lowest among equals. */
export function likeliest(row: Float32Array): number {
  let best = 0;
  for (let id = 1; id < row.length; id++) if (row[id]! > row[best]!) best = id;
  return best;
}
