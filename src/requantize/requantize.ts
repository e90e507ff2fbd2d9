/**
 * Writes a model anew with its routed experts in another type.
 *
 * Streamed: a task is 4 million values (a few megabytes); as many are under way as there are threads, so memory is bounded
 * whatever the size of the model. Resumable: every file is a PartialFile, its parts are the tasks, and its identity is
 * that of the source model and the target, so a kill loses a few seconds and a changed source begins anew.
 */

import { existsSync, statfsSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { Piscina } from 'piscina';
import { MoestreamError } from '../errors.ts';
import { openModel } from '../model/model.ts';
import type { Place } from '../model/places.ts';
import { makeFolder, PIECE_BYTES, PieceReader, readBuffer, writeWhole } from '../pack/disk.ts';
import { fingerprintOf } from '../pack/fingerprint.ts';
import { takeFileLock } from '../pack/lock.ts';
import { PartialFile } from '../pack/partial-file.ts';
import { Work, type WorkOptions } from '../pack/progress.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { defaultThreads } from '../pipeline/plan.ts';
import type { Converted, ConvertTask } from './convert.ts';
import { partBytes } from './parts.ts';
import { type Conversion, planRequantize, type RequantizePlan, type Target } from './plan.ts';

export interface RequantizeOptions extends WorkOptions {
  /** Default: the cores that this process may use. */
  readonly threads?: number;
}

/** What was lost by one kind of matrix: all of a type before that became another. */
export interface Loss {
  readonly from: string;
  readonly to: string;
  readonly tensors: number;
  /** Root mean square error over root mean square, of what this run converted. */
  readonly relativeError: number;
}

export interface RequantizeResult {
  readonly path: string;
  readonly target: string;
  readonly beforeBytes: number;
  readonly afterBytes: number;
  readonly conversions: number;
  readonly losses: readonly Loss[];
}

/** A multiple of every block. */
const TASK_VALUES = 1 << 22;
const SPARE_BYTES = 64e6;

/** One part of an output file: bytes that are copied, or values that are converted. */
type Task =
  | { readonly kind: 'header'; readonly bytes: Buffer; readonly target: Target }
  | { readonly kind: 'copy'; readonly source: Place; readonly target: Target }
  | {
      readonly kind: 'convert';
      readonly conversion: Conversion;
      readonly firstValue: number;
      readonly values: number;
    };

/**
 * Requantises the experts of the model at `source` into `target`, a new GGUF file or checkpoint folder. Throws typed
 * errors, and ABORTED by the signal; after any of them the same call goes on.
 */
export async function requantize(
  source: string,
  type: string,
  target: string,
  options: RequantizeOptions = {},
): Promise<RequantizeResult> {
  const model = openModel(source);
  const isFolder = 'stored' in model.source;
  const path = resolve(target);
  const folder = isFolder ? path : dirname(path);
  const plan = planRequantize(model, type, basename(path));
  if (plan.conversions.length === 0) {
    throw new MoestreamError('USAGE', `the experts of ${source} are ${plan.target} already`);
  }
  if (existsSync(isFolder ? join(path, plan.texts.at(-1)!.name) : path)) {
    throw new MoestreamError('USAGE', `${path} is there already`, {
      hint: 'Choose another name, or delete it.',
    });
  }
  makeFolder(folder);
  const unlock = takeFileLock(join(folder, `${basename(path)}.requantize.lock`), {
    doing: 'requantising into this place',
    code: 'MODEL_BUSY',
  });
  try {
    refuseFullDisk(folder, plan);
    const identity = JSON.stringify({
      source: fingerprintOf(model.source),
      target: plan.target,
      task: TASK_VALUES,
    });
    const losses = await new Requantizer(plan, folder, identity, options).run();
    const afterBytes = plan.files.reduce((sum, file) => sum + file.sizeBytes, 0);
    const beforeBytes = model.files.reduce((sum, file) => sum + file.sizeBytes, 0);
    const { length } = plan.conversions;
    return { path, target: plan.target, beforeBytes, afterBytes, conversions: length, losses };
  } finally {
    unlock();
  }
}

function refuseFullDisk(folder: string, plan: RequantizePlan): void {
  const thereBytes = plan.files.reduce((sum, { name }) => {
    const part = statSync(`${join(folder, name)}.part`, { throwIfNoEntry: false });
    return sum + (part === undefined ? 0 : part.blocks * 512);
  }, 0);
  const { bavail, bsize } = statfsSync(folder);
  const neededBytes = plan.files.reduce((sum, file) => sum + file.sizeBytes, SPARE_BYTES) - thereBytes;
  if (neededBytes <= bavail * bsize) return;
  throw new MoestreamError(
    'DISK_FULL',
    `${folder}: ${formatBytes(neededBytes)} are needed and ${formatBytes(bavail * bsize)} are free`,
    { hint: 'Make room, or name a folder on a larger disk.' },
  );
}

/** The tasks of every file, in the order of its bytes. */
function tasksOf(plan: RequantizePlan): Task[][] {
  const tasks: Task[][] = plan.files.map(({ header }, file) => [
    { kind: 'header', bytes: header, target: { file, offsetBytes: 0 } },
  ]);
  for (const { source, target } of plan.copies) {
    for (let at = 0; at < source.byteLength; at += PIECE_BYTES) {
      const byteLength = Math.min(PIECE_BYTES, source.byteLength - at);
      tasks[target.file]!.push({
        kind: 'copy',
        source: { file: source.file, offsetBytes: source.offsetBytes + at, byteLength },
        target: { file: target.file, offsetBytes: target.offsetBytes + at },
      });
    }
  }
  for (const conversion of plan.conversions) {
    for (let firstValue = 0; firstValue < conversion.values; firstValue += TASK_VALUES) {
      const values = Math.min(TASK_VALUES, conversion.values - firstValue);
      tasks[conversion.targets[0]!.file]!.push({ kind: 'convert', conversion, firstValue, values });
    }
  }
  return tasks;
}

interface Sum {
  tensors: Set<string>;
  errorSquares: number;
  squares: number;
}

class Requantizer {
  private readonly plan: RequantizePlan;
  private readonly folder: string;
  private readonly identity: string;
  private readonly options: RequantizeOptions;
  private readonly work: Work;
  private readonly readers: PieceReader[] = [];
  private readonly files: PartialFile[] = [];
  private readonly sums = new Map<string, Sum>();

  constructor(plan: RequantizePlan, folder: string, identity: string, options: RequantizeOptions) {
    this.plan = plan;
    this.folder = folder;
    this.identity = identity;
    this.options = options;
    this.work = new Work(
      plan.files.reduce((sum, file) => sum + file.sizeBytes, 0),
      options,
    );
  }

  async run(): Promise<Loss[]> {
    const threads = this.options.threads ?? defaultThreads();
    const pool = new Piscina<ConvertTask, Converted>({
      filename: new URL('./convert.js', import.meta.url).href,
      minThreads: threads,
      maxThreads: threads,
    });
    try {
      for (const path of this.plan.sources) this.readers.push(new PieceReader(path));
      const tasks = tasksOf(this.plan);
      // A module's codes, scales and biases may lie in different shards: no file is whole before all tasks are done.
      for (const [index, { name, sizeBytes }] of this.plan.files.entries()) {
        const shape = { sizeBytes, parts: tasks[index]!.length, identity: this.identity };
        this.files.push(await PartialFile.open(join(this.folder, name), shape));
      }
      this.refuseMixedBeginning(tasks);
      await this.runTasks(tasks, threads + 1, pool);
      await this.publish();
      return this.losses();
    } finally {
      await pool.destroy();
      for (const reader of this.readers) reader.close();
    }
  }

  /** Where a journal vouches for bytes of another file, that file must be the one that was begun. */
  private refuseMixedBeginning(tasks: readonly (readonly Task[])[]): void {
    const isSpread = this.plan.conversions.some(({ targets }) =>
      targets.some(({ file }) => file !== targets[0]!.file),
    );
    const begun = this.files.filter((file, index) => file.missing.length < tasks[index]!.length);
    if (!isSpread || begun.length === 0 || begun.length === this.files.length) return;
    throw new MoestreamError('MODEL_INVALID', `${this.folder}: some of the files that were begun are gone`, {
      hint: 'Delete the rest of them (*.part) and run the command again.',
    });
  }

  private async runTasks(
    tasks: readonly (readonly Task[])[],
    lanes: number,
    pool: Piscina<ConvertTask, Converted>,
  ): Promise<void> {
    const open = this.files.flatMap((file, index) => {
      const missing = new Set(file.missing);
      for (const [part, task] of tasks[index]!.entries())
        if (!missing.has(part)) this.work.advance(bytesOf(task));
      return [...missing].map((part) => ({ file, part, task: tasks[index]![part]! }));
    });
    let next = 0;
    let failure: { readonly error: unknown } | undefined;
    const lane = async (): Promise<void> => {
      while (next < open.length && failure === undefined) {
        const { file, part, task } = open[next++]!;
        try {
          await this.perform(task, pool);
          await file.partDone(part, bytesOf(task));
          this.work.advance(bytesOf(task));
        } catch (error) {
          failure ??= { error };
        }
      }
    };
    await Promise.all(Array.from({ length: lanes }, lane));
    await Promise.all(this.files.map((file) => file.close()));
    if (failure !== undefined) throw failure.error;
  }

  private async perform(task: Task, pool: Piscina<ConvertTask, Converted>): Promise<void> {
    if (task.kind === 'header') return this.files[task.target.file]!.write(task.bytes, 0);
    if (task.kind === 'copy') {
      const bytes = await this.read(task.source);
      return this.files[task.target.file]!.write(bytes, task.target.offsetBytes);
    }
    const { conversion, firstValue, values } = task;
    const { from, to, sources, targets } = conversion;
    const [starts, lengths] = [partBytes(from, firstValue), partBytes(from, values)];
    const parts = await Promise.all(
      sources.map(({ file, offsetBytes }, index) =>
        this.read({ file, offsetBytes: offsetBytes + starts[index]!, byteLength: lengths[index]! }),
      ),
    );
    const converted = await pool.run({ from: from.name, to: to.name, values, parts });
    const offsets = partBytes(to, firstValue);
    const journalled = targets[0]!.file;
    await Promise.all(
      converted.parts.map(async (part, index) => {
        const { file, offsetBytes } = targets[index]!;
        await this.files[file]!.write(part, offsetBytes + offsets[index]!);
        // The journal of the codes' file vouches for all three.
        if (file !== journalled) await this.files[file]!.flush();
      }),
    );
    this.count(conversion, converted);
  }

  private read({ file, offsetBytes, byteLength }: Place): Promise<Uint8Array> {
    return this.readers[file]!.read(offsetBytes, byteLength, readBuffer(byteLength));
  }

  private count({ name, from, to }: Conversion, { errorSquares, squares }: Converted): void {
    const key = `${from.name} ${to.name}`;
    const sum = this.sums.get(key) ?? { tensors: new Set(), errorSquares: 0, squares: 0 };
    sum.tensors.add(name);
    sum.errorSquares += errorSquares;
    sum.squares += squares;
    this.sums.set(key, sum);
  }

  private losses(): Loss[] {
    return [...this.sums].map(([key, { tensors, errorSquares, squares }]) => {
      const [from, to] = key.split(' ') as [string, string];
      const relativeError = squares === 0 ? 0 : Math.sqrt(errorSquares / squares);
      return { from, to, tensors: tensors.size, relativeError };
    });
  }

  private async publish(): Promise<void> {
    for (const [index, file] of this.files.entries()) {
      await file.publish();
      const { name, sizeBytes } = this.plan.files[index]!;
      this.options.onFile?.(name, sizeBytes);
    }
    for (const { name, bytes } of this.plan.texts) await writeWhole(join(this.folder, name), bytes);
  }
}

function bytesOf(task: Task): number {
  if (task.kind === 'header') return task.bytes.length;
  if (task.kind === 'copy') return task.source.byteLength;
  return partBytes(task.conversion.to, task.values).reduce((sum, length) => sum + length, 0);
}
