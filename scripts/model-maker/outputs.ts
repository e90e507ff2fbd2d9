/**
 * Writes the files of a model in order, once every byte of them is planned.
 *
 * Invariant: either all files are in place, or none of them and no partial file.
 */
import { statfsSync } from 'node:fs';
import { dirname } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { MakeModelError } from './error.ts';
import { diskError, OutputFile } from './output-file.ts';

export interface OutputPlan {
  readonly path: string;
  readonly sizeBytes: number;
  /** The bytes, in order. A piece is valid until the next one is asked for. */
  pieces(): Iterable<Uint8Array>;
}

export interface WriteOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((writtenBytes: number, totalBytes: number) => void) | undefined;
}

/** Cuts the tensors into runs of about equal bytes, each of at least one tensor. */
export function inRuns<T extends { readonly byteLength: number }>(
  tensors: readonly T[],
  runCount: number,
): T[][] {
  const totalBytes = tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  const runs: T[][] = [[]];
  let doneBytes = 0;
  for (const [index, tensor] of tensors.entries()) {
    const missingRuns = runCount - runs.length;
    const isDue = doneBytes >= (totalBytes * runs.length) / runCount;
    const isLastChance = tensors.length - index <= missingRuns;
    if (missingRuns > 0 && runs.at(-1)!.length > 0 && (isDue || isLastChance)) runs.push([]);
    runs.at(-1)!.push(tensor);
    doneBytes += tensor.byteLength;
  }
  return runs;
}

function refuseFullDisk(path: string, neededBytes: number): void {
  const folder = dirname(path);
  let freeBytes: number;
  try {
    const { bavail, bsize } = statfsSync(folder);
    freeBytes = bavail * bsize;
  } catch (cause) {
    throw diskError(folder, 'cannot be written to', cause);
  }
  if (freeBytes >= neededBytes) return;
  const gigabytes = (byteCount: number): string => `${(byteCount / 1e9).toFixed(2)} GB`;
  throw new MakeModelError(
    'disk',
    `the model needs ${gigabytes(neededBytes)}, but the disk of ${folder} has ${gigabytes(freeBytes)} free; ` +
      'fewer layers, fewer experts or a smaller vocabulary make it smaller',
  );
}

/** Writes one file. Waits for a moment after each full buffer, so that signals and timers get their turn. */
async function writeOutput(
  plan: OutputPlan,
  output: OutputFile,
  breathe: () => Promise<void>,
): Promise<void> {
  for (const piece of plan.pieces()) if (output.write(piece)) await breathe();
  if (output.lengthBytes !== plan.sizeBytes) {
    throw new Error(
      `broken invariant: ${output.lengthBytes} bytes written to a file planned with ${plan.sizeBytes}`,
    );
  }
  output.finish();
}

function refuseInterrupted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new MakeModelError('interrupted', 'interrupted', signal.reason);
}

/** Writes all files and returns their bytes. Throws MakeModelError and leaves no file behind when that is not possible. */
export async function writeOutputs(plans: readonly OutputPlan[], options: WriteOptions): Promise<number> {
  const totalBytes = plans.reduce((sum, plan) => sum + plan.sizeBytes, 0);
  refuseFullDisk(plans[0]!.path, totalBytes);
  const outputs: OutputFile[] = [];
  const breathe = async (): Promise<void> => {
    options.onProgress?.(
      outputs.reduce((sum, output) => sum + output.writtenBytes, 0),
      totalBytes,
    );
    await setImmediate();
    refuseInterrupted(options.signal);
  };
  try {
    for (const plan of plans) {
      refuseInterrupted(options.signal);
      const output = new OutputFile(plan.path);
      outputs.push(output);
      await writeOutput(plan, output, breathe);
    }
    for (const output of outputs) output.publish();
  } catch (error) {
    for (const output of outputs) output.discard();
    throw error;
  }
  return totalBytes;
}
