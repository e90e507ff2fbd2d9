/** A runner whose machine is known: speeds by setting, and a clock that can stop it at any task, as a kill would. */

import { MoestreamError } from '#dist/errors.js';
import type { Settings } from '#dist/eval/settings.js';
import type { Task, TaskResult, TaskRunner } from '#dist/eval/tasks/task.js';

/** Thrown in place of a kill: nothing catches it but the test. */
export class Killed extends Error {}

export class SimulatedRunner implements TaskRunner {
  tasks = 0;
  private readonly killAt: number;

  constructor(killAt = Number.POSITIVE_INFINITY) {
    this.killAt = killAt;
  }

  async run<T extends Task>(task: T): Promise<TaskResult<T['kind']>> {
    if (++this.tasks >= this.killAt) throw new Killed('killed');
    const settings = task.request.options as Settings;
    const value = task.kind === 'run' ? this.measured(settings) : this.scored(settings);
    return { value, notices: [] } as unknown as TaskResult<T['kind']>;
  }

  async close(): Promise<void> {}

  private measured(settings: Settings): unknown {
    if (settings.readers === 64) throw new MoestreamError('RUN_FAILED', 'it crashes');
    const noise = 1 + 0.01 * Math.sin(this.tasks * 12.9898);
    const tokensPerSecond =
      30 * (settings.split === 4 ? 1.1 : 1) * (settings.expertsPerToken === 3 ? 1.5 : 1) * noise;
    const part = {
      tokens: 64,
      millis: 64_000 / tokensPerSecond,
      tokensPerSecond,
      bytesRead: 64e6,
      bytesReadPerToken: 1e6,
      lookups: 100,
      hits: 50,
      hitRate: 0.5,
      stallShare: 0.5,
    };
    return {
      prefill: part,
      decode: part,
      firstTokenMillis: 10,
      tokenMillis: [30],
      tokenMillisP50: 30,
      tokenMillisP99: 40 * (settings.spins === 9 ? 2 : 1),
      cache: { mode: 'warm', sentence: 'warm' },
      disturbance: { othersShare: 0, throttledMillis: 0 },
      drawn: String(settings.expertsPerToken ?? 4),
    };
  }

  private scored(settings: Settings): unknown {
    const perplexity = settings.kvType === 'f32' ? Number.NaN : settings.expertsPerToken === 3 ? 6.54 : 5.58;
    return { perplexity, error: 0.1, digest: 'x' };
  }
}
