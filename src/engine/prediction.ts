/**
 * What `predict` asks for: which predictors, whether the number of their hints that are read is found by measuring, and
 * whether a chunk of a prompt reads its next layer ahead (src/workers/prefetch-union.ts).
 *
 * The default is `auto`, which is all of that: where a model streams, answers come a fifth faster, and where it fits nobody
 * predicts (docs/findings.md). `none` is for comparing: then nothing at all is read that no router has asked for.
 */
import { MoestreamError } from '../errors.ts';
import { PREDICTOR_NAMES, type PredictorName } from '../workers/predictors/predictor.ts';

export interface Prediction {
  readonly auto: boolean;
  readonly names: readonly PredictorName[];
  /** Whether chunks of a prompt read their next layer ahead. */
  readonly union: boolean;
  /** Layers to predict ahead. */
  readonly depth: number;
  /** Where `markov` keeps what it learned. */
  readonly statePath: string | undefined;
}

/** Whom `auto` alone listens to. */
export const AUTO_PREDICTORS: readonly PredictorName[] = ['lookahead'];

const NONE = 'none';
const AUTO = 'auto';
const UNION = 'union';
export const PREDICT_DEFAULT = AUTO;

/** The names in a list such as "auto,markov". Throws USAGE for one that is none. */
export function predictionOf(
  wanted: string | readonly string[],
  depth: number,
  statePath: string | undefined,
): Prediction | undefined {
  const given = (typeof wanted === 'string' ? wanted.split(',') : wanted).map((name) => name.trim());
  const usage = (problem: string): MoestreamError =>
    new MoestreamError('USAGE', `predict is "${given.join(',')}": ${problem}`, {
      hint: `Choose none, auto, or one or several of ${[UNION, ...PREDICTOR_NAMES].join(', ')}.`,
    });
  const auto = given.includes(AUTO);
  const union = auto || given.includes(UNION);
  const named = given.filter((name) => name !== AUTO && name !== UNION);
  const names = named.map((name) => PREDICTOR_NAMES.find((each) => each === name));
  const isNone = given.includes(NONE);
  if (isNone && given.length > 1) throw usage('none goes with nothing else');
  if (!isNone && (given.length === 0 || names.includes(undefined))) throw usage('no such predictor');
  if (new Set(given).size < given.length) throw usage('a name stands twice');
  const chosen = isNone ? [] : names.filter((name) => name !== undefined);
  const all = chosen.length === 0 && auto ? AUTO_PREDICTORS : chosen;
  if (statePath !== undefined && !all.includes('markov')) {
    throw new MoestreamError('USAGE', 'predictState is of the predictor markov, which is not asked for', {
      hint: 'Use --predict markov or auto,markov.',
    });
  }
  return isNone ? undefined : { auto, names: all, union, depth, statePath };
}

/** What would have to be asked for to get this. */
export function predictText(prediction: Prediction | undefined): string {
  if (prediction === undefined) return NONE;
  const { auto, union, names } = prediction;
  const first = auto ? [AUTO] : union ? [UNION] : [];
  return [...first, ...names].join(',');
}
