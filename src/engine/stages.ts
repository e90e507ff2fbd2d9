/**
 * The threads of the pipeline as the engine holds them: starting, calling, watching and ending them.
 *
 * A comlink call to a dead worker never settles, so every call is raced with the worker's end; a worker that dies at any
 * time turns into a WORKER_FAILED error for whoever waits. Ending is bounded: what does not stop by itself within two
 * seconds is terminated.
 */
import { Worker } from 'node:worker_threads';
import * as Comlink from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { Piscina } from 'piscina';
import { fromWire, MoestreamError } from '../errors.ts';
import type { Observation } from '../pipeline/trace.ts';
import type { FetchSetup, FetchTotals } from '../workers/fetch-contract.ts';
import type { StageApi } from '../workers/stage.ts';

const END_MILLIS = 2000;

/** Workers run as the file beside this one does: TypeScript under a loader, JavaScript after the build. */
const EXTENSION = import.meta.url.endsWith('.ts') ? '.ts' : '.js';

function workerFile(name: string): URL {
  return new URL(`../workers/${name}${EXTENSION}`, import.meta.url);
}

/**
 * The end of a thread, for whoever waits on it. Not a promise: racing every call against one that never settles would
 * keep each call's memory for ever.
 */
class Fuse {
  private error: MoestreamError | undefined;
  private readonly waiting = new Set<(error: MoestreamError) => void>();

  /** The first call counts. */
  blow(error: MoestreamError): void {
    this.error ??= error;
    for (const reject of this.waiting) reject(this.error);
    this.waiting.clear();
  }

  /** Calls `listener` when the fuse blows, at once if it has. Returns how to stop listening. */
  listen(listener: (error: MoestreamError) => void): () => void {
    if (this.error) listener(this.error);
    else this.waiting.add(listener);
    return () => this.waiting.delete(listener);
  }

  /** Settles as the work does, or rejects when the fuse blows first. */
  async guard<T>(work: Promise<T>): Promise<T> {
    let unlisten = (): void => {};
    try {
      return await new Promise<T>((resolve, reject) => {
        unlisten = this.listen(reject);
        work.then(resolve, reject);
      });
    } finally {
      unlisten();
    }
  }
}

function fuseOf(worker: Worker, name: string): Fuse {
  const fuse = new Fuse();
  worker.once('error', (cause) => {
    fuse.blow(new MoestreamError('WORKER_FAILED', `the ${name} thread failed: ${String(cause)}`, { cause }));
  });
  worker.once('exit', (code) => {
    fuse.blow(new MoestreamError('WORKER_FAILED', `the ${name} thread ended with code ${code}`));
  });
  return fuse;
}

/** True when the promise settled in time. */
async function within(promise: Promise<unknown>, millis: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(resolve, millis, false);
  });
  const settled = promise.then(
    () => true as const,
    () => true as const,
  );
  const result = await Promise.race([settled, late]);
  clearTimeout(timer);
  return result;
}

/** One stage worker. */
export class StageHandle<Setup, Run, Result> {
  readonly name: string;
  private readonly fuse: Fuse;
  private readonly worker: Worker;
  private readonly api: Comlink.Remote<StageApi<Setup, Run, Result>>;
  private ended = false;

  constructor(name: string, observation: Observation | undefined) {
    this.name = name;
    this.worker = new Worker(workerFile(name), { name: `moestream-${name}`, workerData: observation });
    this.fuse = fuseOf(this.worker, name);
    this.api = Comlink.wrap<StageApi<Setup, Run, Result>>(nodeEndpoint(this.worker));
  }

  async setUp(setup: Setup): Promise<void> {
    // Comlink's type of a remote generic method does not resolve; the call is the method's own.
    return unwrap(
      await this.fuse.guard((this.api.setUp as (setup: Setup) => Promise<ReturnOf<void>>)(setup)),
    );
  }

  async run(request: Run): Promise<Result> {
    return unwrap(
      await this.fuse.guard((this.api.run as (request: Run) => Promise<ReturnOf<Result>>)(request)),
    );
  }

  /** Ends the worker. The stop words must be set already. Tells `failed` why its end was not a good one. */
  async end(failed: (error: MoestreamError) => void): Promise<void> {
    if (this.ended) return;
    this.ended = true;
    const closing = this.fuse.guard((this.api.close as () => Promise<ReturnOf<void>>)());
    const closed = closing.then((outcome) => {
      if (!outcome.ok) failed(fromWire(outcome.error));
    });
    await within(closed, END_MILLIS);
    await within(this.worker.terminate(), END_MILLIS);
  }
}

type ReturnOf<T> = ReturnType<StageApi<unknown, unknown, T>['run']>;

function unwrap<T>(outcome: ReturnOf<T>): T {
  if (outcome.ok) return outcome.value;
  throw fromWire(outcome.error);
}

/** The two ways to read: sixteen threads that each read one chunk, or one that keeps many under way in io_uring. */
export const READ_ENGINES = ['threads', 'uring'] as const;
export type ReadEngine = (typeof READ_ENGINES)[number];

const READ_ENGINE_FILES: Readonly<Record<ReadEngine, string>> = { threads: 'fetch', uring: 'fetch-uring' };

/**
 * A reader's loop makes no objects, but by default V8 grants each thread a young generation as if it did: sixteen readers
 * took 10 MB more on Node 20 and 35 MB on Node 26, of the 200 MB that Node.js may take. The old generation is for a CPU profile.
 */
const READER_HEAP = { maxYoungGenerationSizeMb: 1, maxOldGenerationSizeMb: 256 } as const;

/** The threads that read. */
export class ReaderPool {
  /** Blows when a reader dies. */
  readonly fuse = new Fuse();
  private readonly pool: Piscina<FetchSetup, FetchTotals>;
  readonly count: number;
  private tasks: Promise<FetchTotals>[] = [];

  constructor(engine: ReadEngine, readers: number) {
    this.count = engine === 'uring' ? 1 : readers;
    this.pool = new Piscina({
      filename: workerFile(READ_ENGINE_FILES[engine]).href,
      minThreads: this.count,
      maxThreads: this.count,
      idleTimeout: Number.POSITIVE_INFINITY,
      // A reader waits in its own loop; the pool must not wait in Atomics.wait between tasks.
      atomics: 'disabled',
      resourceLimits: READER_HEAP,
    });
  }

  /** `observe` says how each reader is watched. */
  start(setup: FetchSetup, observe: (reader: number) => Observation | undefined = () => undefined): void {
    this.tasks = Array.from({ length: this.count }, (_, reader) => {
      const observation = observe(reader);
      return this.pool.run(observation === undefined ? setup : { ...setup, observation });
    });
    for (const task of this.tasks) {
      task.catch((cause: unknown) => {
        this.fuse.blow(
          new MoestreamError('WORKER_FAILED', `a reader thread failed: ${String(cause)}`, { cause }),
        );
      });
    }
  }

  /** Ends the readers. The stop words must be set already. Returns what each of them did. */
  async end(): Promise<FetchTotals[]> {
    const totals: FetchTotals[] = [];
    await within(
      Promise.allSettled(
        this.tasks.map(async (task) => {
          totals.push(await task);
        }),
      ),
      END_MILLIS,
    );
    await within(this.pool.destroy(), END_MILLIS);
    return totals;
  }
}
