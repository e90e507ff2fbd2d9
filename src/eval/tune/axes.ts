/**
 * What tuning may turn, and how far: only what changes speed and never a bit of the output.
 *
 * The axes come in the order of what they were seen to be worth, so that a short budget spends its time well. How files
 * are read (`io`) is none of them: reads through the page cache look fast as long as memory outside the budget holds the
 * model.
 */
import { PREDICT_DEFAULT } from '../../engine/prediction.ts';
import { POLICIES } from '../../pipeline/eviction.ts';
import { PREDICTOR_NAMES } from '../../workers/predictors/predictor.ts';
import type { Score } from '../score.ts';
import type { TunableName, TunableSettings } from '../settings.ts';
import type { Axis } from './search.ts';

/** What decides which axes matter. */
export interface TuningFacts {
  readonly cores: number;
  /** Whether the slab holds every expert: then nothing is read once it is warm. */
  readonly allResident: boolean;
  readonly score: Score;
  readonly promptTokens: number;
  /** What was given by flags and stays as it is. */
  readonly fixed: readonly string[];
}

const AXES: readonly {
  readonly name: TunableName;
  readonly values: (facts: TuningFacts) => readonly (string | number)[];
  /** About reading: without reads there is nothing to find. */
  readonly reads?: true;
  readonly applies?: Axis['applies'];
}[] = [
  { name: 'threads', values: ({ cores }) => threadCounts(cores) },
  { name: 'window', reads: true, values: () => [0, 1, 2, 4, 8] },
  { name: 'split', reads: true, values: () => [1, 2, 3, 4, 8] },
  { name: 'predict', reads: true, values: () => [PREDICT_DEFAULT, 'union', 'none', ...PREDICTOR_NAMES] },
  {
    name: 'lookahead',
    reads: true,
    values: () => [1, 2, 3],
    applies: ({ predict = PREDICT_DEFAULT }) => predict !== 'union' && predict !== 'none',
  },
  { name: 'cachePolicy', reads: true, values: () => POLICIES },
  { name: 'ioEngine', reads: true, values: () => ['threads', 'uring'] },
  { name: 'readers', reads: true, values: () => [4, 8, 16, 32] },
  { name: 'queueDepth', reads: true, values: () => [16, 64, 256] },
  { name: 'chunk', values: chunks },
  { name: 'spins', values: () => [0, 50, 500, 5000] },
  { name: 'queueSlots', reads: true, values: () => [128, 512, 2048] },
];

/** One less leaves a core to the readers; half are the cores where two threads share one. */
function threadCounts(cores: number): number[] {
  const wanted = [cores, cores - 1, Math.ceil(cores / 2), cores + 1];
  return [...new Set(wanted)].filter((count) => count >= 1);
}

/** Only prompts are computed in chunks, and a chunk longer than the prompt is the same as one of its length. */
function chunks({ score, promptTokens }: TuningFacts): number[] {
  if (score === 'decode') return [];
  const sizes = [64, 128, 256, 512, 1024];
  return sizes.filter((_, index) => index === 0 || sizes[index - 1]! < promptTokens);
}

export function axesFor(facts: TuningFacts): Axis[] {
  return AXES.flatMap(({ name, values, reads, applies }) => {
    if (facts.fixed.includes(name) || (reads === true && facts.allResident)) return [];
    const settings = values(facts).map((value) => ({ [name]: value }) as TunableSettings);
    if (settings.length < 2) return [];
    return [{ name, values: settings, ...(applies === undefined ? {} : { applies }) }];
  });
}
