/**
 * A profile of one thread's CPU time, by V8's own sampler, from the start of the thread to its end.
 *
 * Each worker profiles itself: a session of `node:inspector` sees its own thread only, and starting it here works on every
 * Node that we run on. The sampler interrupts the thread a thousand times a second; the results are the same, the times
 * are not for comparing with.
 */
import { writeFileSync } from 'node:fs';
import { type Profiler, Session } from 'node:inspector';
import { invariant, MoestreamError } from '../errors.ts';

export interface CpuProfile {
  /** Ends the profile and writes it. Throws WRITE_FAILED. */
  write(): void;
}

/** Starts at once; undefined when no path is given. */
export function startCpuProfile(path: string | undefined): CpuProfile | undefined {
  if (path === undefined) return undefined;
  const session = new Session();
  session.connect();
  session.post('Profiler.enable');
  session.post('Profiler.start');
  let written = false;
  return {
    write: () => {
      if (written) return;
      written = true;
      // A session of the own thread answers before `post` returns.
      let profile: Profiler.Profile | undefined;
      session.post('Profiler.stop', (_: Error | null, answer: Profiler.StopReturnType | undefined) => {
        profile = answer?.profile;
      });
      session.disconnect();
      invariant(profile !== undefined, 'the profiler gives its profile at once');
      save(path, profile);
    },
  };
}

/** For threads that have nobody to throw to: why the profile could not be written, or undefined. */
export function endCpuProfile(profile: CpuProfile | undefined): string | undefined {
  try {
    profile?.write();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

function save(path: string, profile: Profiler.Profile): void {
  try {
    writeFileSync(path, JSON.stringify(profile));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MoestreamError('WRITE_FAILED', `the CPU profile ${path} cannot be written: ${reason}`, {
      cause,
    });
  }
}
