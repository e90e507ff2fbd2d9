/**
 * How a stage worker is reached from the main thread.
 *
 * Between runs a stage sits in its event loop and answers comlink calls; during a run it is one call that does not
 * return: a loop over rings that answers nobody until the run is over or the stop word is set. So calls are few: set
 * up, run, close. Errors cross as data, because structured cloning drops their codes.
 */
import { parentPort, workerData } from 'node:worker_threads';
import * as Comlink from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { invariant, toWire, type WireError } from '../errors.ts';
import { type Observation, Tracer } from '../pipeline/trace.ts';
import { startCpuProfile } from './cpu-profile.ts';

export type Outcome<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly error: WireError };

/** What every stage offers to the engine. */
export interface StageApi<Setup, Run, Result> {
  setUp(setup: Setup): Outcome<void>;
  run(request: Run): Outcome<Result>;
  close(): Outcome<void>;
}

/** What a stage implements; thrown errors become outcomes. */
export interface StageLogic<Setup, Run, Result> {
  setUp(setup: Setup): void;
  run(request: Run): Result;
  close(): void;
}

const observation = workerData as Observation | null;

/** What this thread writes its events with. */
export const trace = new Tracer(observation?.trace);

function attempt<T>(work: () => T): Outcome<T> {
  try {
    return { ok: true, value: work() };
  } catch (error) {
    return { ok: false, error: toWire(error) };
  }
}

export function serveStage<Setup, Run, Result>(stage: StageLogic<Setup, Run, Result>): void {
  invariant(parentPort !== null, 'a stage runs in a worker thread');
  const profile = startCpuProfile(observation?.cpuProfile);
  const api: StageApi<Setup, Run, Result> = {
    setUp: (setup) => attempt(() => stage.setUp(setup)),
    run: (request) => attempt(() => stage.run(request)),
    close: () =>
      attempt(() => {
        stage.close();
        profile?.write();
      }),
  };
  Comlink.expose(api, nodeEndpoint(parentPort));
}

/** How long a stage sleeps on a ring before it shows a heartbeat again. */
export const BEAT_MILLIS = 1000;
