/** What a run is made of, as a plan puts it together: the baseline, and what experiments that were kept have changed. */
import { resolve } from 'node:path';
import { digestOf } from '../digest.ts';
import { describeSettings, type Settings } from '../settings.ts';
import { type Changes, type Experiment, type ResearchPlan, withoutUndefined } from './plan.ts';

export interface Configuration {
  /** As the plan writes it; relative to the plan. */
  readonly model: string;
  readonly settings: Settings;
  readonly environment: Readonly<Record<string, string>>;
  readonly git: string | undefined;
}

export function baselineOf(plan: ResearchPlan): Configuration {
  const { model, settings, environment, git } = plan.baseline;
  return { model, settings: withoutUndefined(settings), environment: environment ?? {}, git };
}

/** The changes laid over what they are tried on. */
export function changedBy(base: Configuration, changes: Changes): Configuration {
  return {
    model: changes.model ?? base.model,
    settings: { ...base.settings, ...withoutUndefined(changes.settings) },
    environment: { ...base.environment, ...changes.environment },
    git: changes.git ?? base.git,
  };
}

export function modelPath(plan: ResearchPlan, { model }: Configuration): string {
  return resolve(plan.folder, model);
}

/** `--split 4, FOO=1, model q4.gguf` */
export function describeChanges({ model, settings, environment, git }: Changes): string {
  const parts = [
    ...(model === undefined ? [] : [`model ${model}`]),
    ...(settings === undefined ? [] : [describeSettings(withoutUndefined(settings))]),
    ...Object.entries(environment ?? {}).map(([name, value]) => `${name}=${value}`),
    ...(git === undefined ? [] : [`git ${git}`]),
  ];
  return parts.join(', ');
}

const sorted = (record: object | undefined): unknown =>
  Object.entries(record ?? {})
    .filter(([, value]) => value !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1));

/** What an experiment is, whatever its place in the plan. */
export function experimentDigest({ name, model, settings, environment, git }: Experiment): string {
  return digestOf([name, model ?? null, sorted(settings), sorted(environment), git ?? null]);
}

export const BASELINE_DIGEST = 'baseline';

/** What must not change while a log grows; experiments may be added, the rest would make results incomparable. */
export function coreDigest({ baseline, run, score, rounds, gain, gates }: ResearchPlan): string {
  const { model, settings, environment, git } = baseline;
  return digestOf([
    model,
    sorted(settings),
    sorted(environment),
    git ?? null,
    sorted(run),
    score,
    rounds,
    gain,
    gates,
  ]);
}
