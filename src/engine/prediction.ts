/** What `predict` asks for: which predictors, and whether the number of their hints that are read is found by measuring. */
import { MoestreamError } from '../errors.ts';
import { PREDICTOR_NAMES, type PredictorName } from '../workers/predictors/predictor.ts';

export interface Prediction {
  readonly auto: boolean;
  readonly names: readonly PredictorName[];
  /** Layers to predict ahead. */
  readonly depth: number;
  /** Where `markov` keeps what it learned. */
  readonly statePath: string | undefined;
}

/** Whom `auto` alone listens to. */
export const AUTO_PREDICTORS: readonly PredictorName[] = ['lookahead'];

const NONE = 'none';
const AUTO = 'auto';

/** The names in a list such as "auto,markov". Throws USAGE for one that is none. */
export function predictionOf(
  wanted: string | readonly string[],
  depth: number,
  statePath: string | undefined,
): Prediction | undefined {
  const given = (typeof wanted === 'string' ? wanted.split(',') : wanted).map((name) => name.trim());
  const usage = (problem: string): MoestreamError =>
    new MoestreamError('USAGE', `predict is "${given.join(',')}": ${problem}`, {
      hint: `Choose none, auto, or one or several of ${PREDICTOR_NAMES.join(', ')}.`,
    });
  const named = given.filter((name) => name !== AUTO);
  const names = named.map((name) => PREDICTOR_NAMES.find((each) => each === name));
  const isNone = named.length === 1 && named[0] === NONE;
  if (isNone && named.length < given.length) throw usage('none goes with nothing else');
  if (!isNone && (given.length === 0 || names.includes(undefined))) throw usage('no such predictor');
  if (new Set(given).size < given.length) throw usage('a name stands twice');
  const chosen = isNone ? [] : names.filter((name) => name !== undefined);
  const all = chosen.length === 0 && !isNone ? AUTO_PREDICTORS : chosen;
  if (statePath !== undefined && !all.includes('markov')) {
    throw new MoestreamError('USAGE', 'predictState is of the predictor markov, which is not asked for', {
      hint: 'Use --predict markov or auto,markov.',
    });
  }
  return isNone ? undefined : { auto: given.includes(AUTO), names: all, depth, statePath };
}
