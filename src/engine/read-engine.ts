/**
 * Which read engine a model is read with, and how many reads may be under way.
 *
 * io_uring is the first choice where it can be had and files are read directly: a quarter of the CPU time of sixteen
 * threads at the same bandwidth. Buffered reads go through the threads: io_uring would hand them to kernel threads, which
 * costs the same and shows less. From the page cache it copies at once, in its own thread: faster than the disk, and without
 * the memory of sixteen threads, which would break the budget.
 */
import { MoestreamError } from '../errors.ts';
import type { Model } from '../model/model.ts';
import type { IoAddon } from '../native.ts';
import { chunksPerExpert } from '../pipeline/expert-layout.ts';
import { layerSource } from '../pipeline/plan.ts';
import type { EngineSettings } from './options.ts';
import type { ReadEngine } from './stages.ts';

export interface ReadEngineChoice {
  readonly engine: ReadEngine;
  /** Chunks under way at once. */
  readonly mostUnderWay: number;
}

function choose(io: IoAddon, settings: EngineSettings, kernelSuits: boolean): ReadEngine {
  if (settings.ioEngine === 'threads' || (settings.ioEngine === 'auto' && !kernelSuits)) return 'threads';
  const refusal = io.uringRefusal();
  if (refusal === 0) return 'uring';
  const reason =
    process.platform === 'linux' ? `the kernel refuses it: ${io.errnoName(refusal)}` : 'only Linux has it';
  if (settings.ioEngine === 'uring') settings.notice(`reading with threads instead of io_uring (${reason})`);
  return 'threads';
}

/**
 * The engine, and the window in chunks. `kernelSuits` where files are read directly or from the page cache. Throws USAGE
 * when the queue depth cannot hold the window.
 */
export function chooseReadEngine(
  io: IoAddon,
  settings: EngineSettings,
  model: Model,
  kernelSuits: boolean,
): ReadEngineChoice {
  const engine = choose(io, settings, kernelSuits);
  const most = engine === 'uring' ? settings.queueDepth : settings.readers;
  if (settings.window === 0) return { engine, mostUnderWay: most };
  const chunks = Math.max(
    ...model.tensors.experts.map((each) => chunksPerExpert(layerSource(each), settings.split)),
  );
  const mostUnderWay = settings.window * chunks;
  if (settings.windowGiven && mostUnderWay > most) {
    throw new MoestreamError(
      'USAGE',
      `a window of ${settings.window} experts is ${mostUnderWay} chunks, ${engine} can have ${most} under way`,
      { hint: engine === 'uring' ? 'Raise --queue-depth.' : 'Raise --readers, or lower --split.' },
    );
  }
  return { engine, mostUnderWay: Math.min(most, mostUnderWay) };
}
