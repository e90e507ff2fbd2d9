/** The bench of the real machine: every candidate as a measured run of its own process. */
import { type ErrorCode, MoestreamError } from '../../errors.ts';
import type { RunRequest } from '../measure-run.ts';
import { type Score, scoreOf } from '../score.ts';
import type { TunableSettings } from '../settings.ts';
import { withSettings } from '../sweep.ts';
import type { TaskRunner } from '../tasks/task.ts';
import type { Bench, Outcome } from './search.ts';

export interface RunBenchOptions {
  readonly runner: TaskRunner;
  readonly request: RunRequest;
  readonly score: Score;
  readonly timeoutSeconds: number;
  readonly signal: AbortSignal;
  readonly onRun: (settings: TunableSettings) => void;
}

/** With these, no candidate will ever run. */
const FATAL: readonly ErrorCode[] = [
  'ABORTED',
  'MODEL_NOT_FOUND',
  'MODEL_INVALID',
  'MODEL_UNSUPPORTED',
  'NATIVE_MISSING',
  'INTERNAL',
];

export class RunBench implements Bench {
  private readonly options: RunBenchOptions;

  constructor(options: RunBenchOptions) {
    this.options = options;
  }

  async round(candidates: readonly TunableSettings[]): Promise<readonly Outcome[]> {
    const outcomes: Outcome[] = [];
    for (const settings of candidates) outcomes.push(await this.measure(settings));
    return outcomes;
  }

  private async measure(settings: TunableSettings): Promise<Outcome> {
    const { runner, request, score, timeoutSeconds, signal, onRun } = this.options;
    onRun(settings);
    const began = performance.now();
    const seconds = (): number => (performance.now() - began) / 1000;
    try {
      const { value } = await runner.run(
        { kind: 'run', request: withSettings(request, settings), timeoutSeconds },
        { signal },
      );
      return {
        seconds: seconds(),
        score: scoreOf(value, score),
        // Without an answer no token waits for another: p99 decides nothing.
        p99Millis: value.tokenMillisP99 ?? 1,
        drawn: value.drawn,
      };
    } catch (error) {
      if (!MoestreamError.is(error) || FATAL.includes(error.code)) throw error;
      return { seconds: seconds(), failure: `${error.message} (${error.code})` };
    }
  }
}
