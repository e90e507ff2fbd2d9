/**
 * Makes a model file: plans every byte of it first, then writes them in order.
 *
 * Why plan first: whether the disk has room is known before the first byte, and a split set knows its tensor count.
 * Invariant: either all files of the model are in place, or none of them and no partial file; memory stays bounded by
 * the pools (4 MiB per type and deviation, about 10 of them), the largest header and one write buffer, whatever the size
 * of the model. The number behind it: planning 397b (60 layers) takes 0.2 s, writing its 179 GB as long as the disk does.
 */
import { statfsSync } from 'node:fs';
import { dirname } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { ggmlTypeNamed, rowBytes } from '#dist/model/ggml-types.js';
import { MakeModelError } from './error.ts';
import { aligned, type DirectoryEntry, encodeHeader } from './gguf-header.ts';
import { modelMetadata, splitMetadata } from './metadata.ts';
import { type MixInUse, mixFor } from './mixes.ts';
import { diskError, OutputFile } from './output-file.ts';
import { type ModelShape, modelShape, type Preset, type ShapeChanges } from './shapes.ts';
import { modelTensors, type TensorSpec } from './tensors.ts';
import { WeightMaker, type WeightsRequest } from './weights.ts';

export interface MakeModelOptions extends ShapeChanges {
  readonly preset: Preset;
  /** One of MIX_NAMES. */
  readonly mix: string;
  /** The layer with finer experts, in mixes that have one. Default: 27, as published, in models that deep. */
  readonly outlier?: number | 'none' | undefined;
  /** Into how many files; names then end in -00001-of-0000N.gguf. */
  readonly splitFiles?: number | undefined;
  readonly seed?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((writtenBytes: number, totalBytes: number) => void) | undefined;
}

export interface MadeModel {
  readonly paths: readonly string[];
  readonly totalBytes: number;
  readonly tensorCount: number;
  readonly shape: ModelShape;
}

interface PlannedTensor extends WeightsRequest, DirectoryEntry {}

interface PlannedFile {
  readonly path: string;
  readonly header: Buffer;
  readonly tensors: readonly PlannedTensor[];
  readonly sizeBytes: number;
}

const F32 = ggmlTypeNamed('F32');
const SPLIT_FILES_MAX = 1024;

function tensorRequest(spec: TensorSpec, mix: MixInUse): WeightsRequest {
  const [cols, ...counts] = spec.shape as [number, ...number[]];
  const type = spec.content.kind === 'noise' ? mix.typeOf(spec.name, cols) : F32;
  const byteLength = counts.reduce((product, count) => product * count, rowBytes(type, cols));
  return { ...spec, type, byteLength };
}

/** Cuts the tensors into runs of about equal bytes, each of at least one tensor. */
function inRuns(tensors: readonly WeightsRequest[], runCount: number): WeightsRequest[][] {
  const totalBytes = tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  const runs: WeightsRequest[][] = [[]];
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

function partPaths(path: string, parts: number): string[] {
  if (parts === 1) return [path];
  if (!path.endsWith('.gguf')) {
    throw new MakeModelError('usage', `${path}: a model in ${parts} files needs a name that ends in .gguf`);
  }
  const digits = (value: number): string => String(value).padStart(5, '0');
  const stem = path.slice(0, -'.gguf'.length);
  return Array.from({ length: parts }, (_, part) => `${stem}-${digits(part + 1)}-of-${digits(parts)}.gguf`);
}

function planFiles(options: MakeModelOptions, shape: ModelShape, path: string): PlannedFile[] {
  const mix = mixFor(options.mix, shape.layers, options.outlier);
  const tensors = modelTensors(shape).map((spec) => tensorRequest(spec, mix));
  const parts = options.splitFiles ?? 1;
  const partsMax = Math.min(SPLIT_FILES_MAX, tensors.length);
  if (!Number.isInteger(parts) || parts < 1 || parts > partsMax) {
    throw new MakeModelError('usage', `${parts} files are asked for; this model fits in 1 to ${partsMax}`);
  }
  const paths = partPaths(path, parts);
  const metadata = modelMetadata(shape, `random-${options.preset}-${options.mix}`, mix.fileType);
  return inRuns(tensors, parts).map((run, part) => {
    let offsetBytes = 0;
    const planned = run.map((tensor) => {
      const entry = { ...tensor, offsetBytes };
      offsetBytes += aligned(tensor.byteLength);
      return entry;
    });
    const split = parts === 1 ? [] : splitMetadata(part, parts, tensors.length);
    const header = encodeHeader([...(part === 0 ? metadata : []), ...split], planned);
    return { path: paths[part]!, header, tensors: planned, sizeBytes: header.length + offsetBytes };
  });
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

const PADDING = new Uint8Array(aligned(1));

/** Writes one file. Waits for a moment after each full buffer, so that signals and timers get their turn. */
async function writeFile(
  file: PlannedFile,
  output: OutputFile,
  weights: WeightMaker,
  breathe: () => Promise<void>,
): Promise<void> {
  output.write(file.header);
  for (const tensor of file.tensors) {
    for (const piece of weights.pieces(tensor)) {
      if (output.write(piece)) await breathe();
    }
    output.write(PADDING.subarray(0, aligned(tensor.byteLength) - tensor.byteLength));
  }
  if (output.lengthBytes !== file.sizeBytes) {
    throw new Error(
      `broken invariant: ${output.lengthBytes} bytes written to a file planned with ${file.sizeBytes}`,
    );
  }
  output.finish();
}

function refuseInterrupted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new MakeModelError('interrupted', 'interrupted', signal.reason);
}

/** Makes the model at `path`. Throws MakeModelError and leaves nothing behind when that is not possible. */
export async function makeModel(options: MakeModelOptions, path: string): Promise<MadeModel> {
  const shape = modelShape(options.preset, options);
  const files = planFiles(options, shape, path);
  const totalBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  refuseFullDisk(path, totalBytes);
  const weights = new WeightMaker(options.seed ?? 1);
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
    for (const file of files) {
      refuseInterrupted(options.signal);
      const output = new OutputFile(file.path);
      outputs.push(output);
      await writeFile(file, output, weights, breathe);
    }
    for (const output of outputs) output.publish();
  } catch (error) {
    for (const output of outputs) output.discard();
    throw error;
  }
  const tensorCount = files.reduce((sum, file) => sum + file.tensors.length, 0);
  return { paths: files.map((file) => file.path), totalBytes, tensorCount, shape };
}
