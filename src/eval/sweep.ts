/**
 * The same tokens with every value of a setting, or of a grid of settings, so that the difference is the setting's.
 *
 * Runs are interleaved and order-balanced (schedule.ts), each in a process of its own. A point that fails is reported with
 * its error and left out of later rounds; the others go on. A sweep that is interrupted keeps every run that has ended.
 */
import { type ErrorCode, MoestreamError } from '../errors.ts';
import type { RunMeasurement, RunRequest } from './measure-run.ts';
import { pairedRatio } from './paired.ts';
import { balancedOrder } from './schedule.ts';
import { type Score, scoreOf } from './score.ts';
import type { SettingName, Settings, SettingValue } from './settings.ts';
import { bootstrapInterval, type Interval, median, type Ratio } from './statistics.ts';
import type { TaskRunner } from './tasks/task.ts';

/** What varies; the flags' parsers have seen to it that a value is of its setting's kind. */
export type Grid = readonly (readonly [SettingName, readonly SettingValue[]])[];

export interface SweepRequest {
  /** What every run has; a point's settings are laid over its options. */
  readonly run: RunRequest;
  readonly grid: Grid;
  /** Made even: a pair of rounds is balanced, half of one is not. */
  readonly rounds: number;
  readonly score: Score;
  readonly timeoutSeconds: number;
}

export interface SweepListeners {
  readonly signal?: AbortSignal;
  readonly onRun?: (done: number, total: number, point: SweepPoint) => void;
}

export type SweepPoint = Settings;

export interface SweepFailure {
  readonly code: ErrorCode;
  readonly message: string;
}

export interface SweepRow {
  readonly settings: SweepPoint;
  /** By round; null where there was no run. */
  readonly scores: readonly (number | null)[];
  /** Absent before the first run has ended. */
  readonly score?: { readonly median: number } & Interval;
  /** Of this point by the first one, from the rounds that have both. */
  readonly toFirst?: Ratio;
  readonly tokenMillisP99?: number;
  readonly bytesReadPerToken?: number;
  readonly hitRate?: number;
  readonly stallShare?: number;
  /** What others took of the processor meanwhile, the worst run. */
  readonly othersShare?: number;
  readonly cache?: string;
  readonly drawn?: readonly string[];
  readonly failure?: SweepFailure;
}

export interface SweepResult {
  readonly score: Score;
  readonly rounds: number;
  readonly runsDone: number;
  readonly runsPlanned: number;
  readonly interrupted: boolean;
  readonly rows: readonly SweepRow[];
  readonly notices: readonly string[];
}

const POINTS_MAX = 256;
/** No point of a sweep can do better with these. */
const FATAL: readonly ErrorCode[] = [
  'MODEL_NOT_FOUND',
  'MODEL_INVALID',
  'MODEL_UNSUPPORTED',
  'NATIVE_MISSING',
  'INTERNAL',
];

/** Every combination, the last list changing fastest. Throws USAGE when there are too many. */
export function pointsOf(grid: Grid): readonly SweepPoint[] {
  const points = grid.reduce<SweepPoint[]>(
    (before, [name, values]) =>
      before.flatMap((point) => values.map((value) => ({ ...point, [name]: value }))),
    [{}],
  );
  if (points.length <= POINTS_MAX) return points;
  throw new MoestreamError(
    'USAGE',
    `the grid has ${points.length} points, at most ${POINTS_MAX} are measured`,
  );
}

interface Measured {
  readonly runs: (RunMeasurement | undefined)[];
  failure: SweepFailure | undefined;
}

/** Measures the grid. Throws the first failure when every point fails; being interrupted is a result. */
export async function runSweep(
  runner: TaskRunner,
  request: SweepRequest,
  listeners: SweepListeners = {},
): Promise<SweepResult> {
  const points = pointsOf(request.grid);
  const rounds = request.rounds + (request.rounds % 2);
  const measured: Measured[] = points.map(() => ({ runs: [], failure: undefined }));
  const notices = new Set<string>();
  const runsPlanned = points.length * rounds;
  let runsDone = 0;
  let interrupted = false;
  const order = balancedOrder(points.length, rounds).flatMap((places, round) =>
    places.map((place) => ({ place, round })),
  );
  for (const { place, round } of order) {
    const [point, found] = [points[place]!, measured[place]!];
    if (found.failure !== undefined) continue;
    listeners.onRun?.(runsDone, runsPlanned, point);
    try {
      const result = await runner.run(
        { kind: 'run', request: withSettings(request.run, point), timeoutSeconds: request.timeoutSeconds },
        listeners.signal === undefined ? {} : { signal: listeners.signal },
      );
      found.runs[round] = result.value;
      for (const notice of result.notices) notices.add(notice);
      runsDone++;
    } catch (error) {
      if (!MoestreamError.is(error) || FATAL.includes(error.code)) throw error;
      interrupted = error.code === 'ABORTED';
      if (interrupted) break;
      found.failure = { code: error.code, message: error.message };
    }
  }
  const first = measured.find(({ failure }) => failure === undefined);
  if (first === undefined) {
    const { code, message } = measured[0]!.failure!;
    throw new MoestreamError(code, `every point fails; the first: ${message}`);
  }
  const rows = points.map((point, place) =>
    rowOf(point, measured[place]!, measured[0]!, request.score, rounds),
  );
  return { score: request.score, rounds, runsDone, runsPlanned, interrupted, rows, notices: [...notices] };
}

export function withSettings(run: RunRequest, settings: Settings): RunRequest {
  return { ...run, options: { ...run.options, ...settings } };
}

function rowOf(point: SweepPoint, found: Measured, first: Measured, score: Score, rounds: number): SweepRow {
  const byRound = (each: Measured): (number | null)[] =>
    Array.from({ length: rounds }, (_, round) => {
      const run = each.runs[round];
      return run === undefined ? null : scoreOf(run, score);
    });
  const scores = byRound(found);
  const failure = found.failure === undefined ? {} : { failure: found.failure };
  const runs = found.runs.filter((run) => run !== undefined);
  const values = scores.filter((value) => value !== null);
  if (values.length === 0) return { settings: point, scores, ...failure };
  const pairs = byRound(first).flatMap((base, round) => {
    const own = scores[round] ?? null;
    return base === null || own === null ? [] : [[base, own] as const];
  });
  const parts = runs.map((run) => (score === 'prefill' ? run.prefill! : (run.decode ?? run.prefill!)));
  const p99 = runs.flatMap((run) => (run.tokenMillisP99 === undefined ? [] : [run.tokenMillisP99]));
  return {
    settings: point,
    scores,
    score: { median: median(values), ...bootstrapInterval(values) },
    ...(found === first || pairs.length === 0
      ? {}
      : {
          toFirst: pairedRatio(
            pairs.map(([base]) => base),
            pairs.map(([, own]) => own),
          ),
        }),
    ...(p99.length === 0 ? {} : { tokenMillisP99: median(p99) }),
    bytesReadPerToken: median(parts.map((part) => part.bytesReadPerToken)),
    hitRate: median(parts.map((part) => part.hitRate)),
    stallShare: median(parts.map((part) => part.stallShare)),
    othersShare: Math.max(...runs.map((run) => run.disturbance.othersShare)),
    cache: runs[0]!.cache.sentence,
    drawn: [...new Set(runs.map((run) => run.drawn))],
    ...failure,
  };
}

/** The row with the highest median, and whether it is told from the first with 95 % confidence. */
export function bestRow(
  rows: readonly SweepRow[],
): { readonly row: SweepRow; readonly sure: boolean } | undefined {
  const measured = rows.filter((row) => row.score !== undefined && row.failure === undefined);
  const [row] = measured.sort((a, b) => b.score!.median - a.score!.median);
  return row === undefined ? undefined : { row, sure: row.toFirst !== undefined && row.toFirst.low > 1 };
}
