/** Stages that stand still: each writes a heartbeat once per layer or message, and somebody looks at them during a run. */
import { MoestreamError } from '../errors.ts';
import type { ControlBlock, Stage } from '../pipeline/control.ts';

/** A stage that shows no heartbeat for this long is stuck: the longest step is one layer of one prefill chunk. */
const STUCK_MILLIS = 120_000;
const WATCH_MILLIS = 5_000;

/** Tells of a stage that shows no heartbeat. */
export function watchHeartbeats(
  control: ControlBlock,
  stages: readonly Stage[],
  stuck: (stage: Stage, error: MoestreamError) => void,
): () => void {
  const seen = stages.map((stage) => ({
    stage,
    beat: control.heartbeat(stage),
    atMillis: performance.now(),
  }));
  const look = (): void => {
    for (const each of seen) {
      const beat = control.heartbeat(each.stage);
      if (beat !== each.beat) {
        each.beat = beat;
        each.atMillis = performance.now();
      } else if (performance.now() - each.atMillis > STUCK_MILLIS) {
        const seconds = STUCK_MILLIS / 1000;
        stuck(
          each.stage,
          new MoestreamError('WORKER_FAILED', `the ${each.stage} thread made no progress for ${seconds} s`),
        );
      }
    }
  };
  const timer = setInterval(look, WATCH_MILLIS).unref();
  return () => clearInterval(timer);
}
