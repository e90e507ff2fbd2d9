/**
 * Makes a model file: plans every byte of it first, then writes them in order (outputs.ts).
 *
 * Why plan first: whether the disk has room is known before the first byte, and a split set knows its tensor count.
 * Invariant: memory stays bounded by the pools (4 MiB per type and deviation, about 10 of them), the largest header and one
 * write buffer, whatever the size of the model. The number behind it: planning 397b (60 layers) takes 0.2 s, writing its
 * 179 GB as long as the disk does.
 */
import { ggmlTypeNamed, rowBytes } from '#dist/model/ggml-types.js';
import { MakeModelError } from './error.ts';
import { aligned, type DirectoryEntry, encodeHeader } from './gguf-header.ts';
import { modelMetadata, splitMetadata } from './metadata.ts';
import { type MixInUse, mixFor } from './mixes.ts';
import { type MlxOptions, planMlx } from './mlx.ts';
import { inRuns, type OutputPlan, type WriteOptions, writeOutputs } from './outputs.ts';
import { type ModelShape, modelShape, type Preset, type ShapeChanges } from './shapes.ts';
import { modelTensors, type TensorSpec } from './tensors.ts';
import { WeightMaker, type WeightsRequest } from './weights.ts';

export interface MakeModelOptions extends ShapeChanges, MlxOptions, WriteOptions {
  readonly preset: Preset;
  /** What to write. Default gguf. */
  readonly format?: 'gguf' | 'mlx' | undefined;
  /** One of MIX_NAMES; of a GGUF. Default UD_Q3_K_XL. */
  readonly mix?: string | undefined;
  /** The layer with finer experts, in mixes that have one. Default: 27, as published, in models that deep. */
  readonly outlier?: number | 'none' | undefined;
  /** Into how many files; names then end in -00001-of-0000N.gguf. */
  readonly splitFiles?: number | undefined;
  readonly seed?: number | undefined;
}

export interface MadeModel {
  readonly paths: readonly string[];
  readonly totalBytes: number;
  readonly tensorCount: number;
  readonly shape: ModelShape;
}

interface PlannedTensor extends WeightsRequest, DirectoryEntry {}

const F32 = ggmlTypeNamed('F32');
const SPLIT_FILES_MAX = 1024;
export const DEFAULT_MIX = 'UD_Q3_K_XL';

function tensorRequest(spec: TensorSpec, mix: MixInUse): WeightsRequest {
  const [cols, ...counts] = spec.shape as [number, ...number[]];
  const type = spec.content.kind === 'noise' ? mix.typeOf(spec.name, cols) : F32;
  const byteLength = counts.reduce((product, count) => product * count, rowBytes(type, cols));
  return { ...spec, type, byteLength };
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

function planFiles(
  options: MakeModelOptions,
  shape: ModelShape,
  path: string,
): { files: OutputPlan[]; tensorCount: number } {
  if (options.bits !== undefined || options.expertBits !== undefined)
    throw new MakeModelError('usage', 'bits are for format mlx; the types of a GGUF are its mix');
  const weights = new WeightMaker(options.seed ?? 1);
  const mixName = options.mix ?? DEFAULT_MIX;
  const mix = mixFor(mixName, shape.layers, options.outlier);
  const tensors = modelTensors(shape).map((spec) => tensorRequest(spec, mix));
  const parts = options.splitFiles ?? 1;
  const partsMax = Math.min(SPLIT_FILES_MAX, tensors.length);
  if (!Number.isInteger(parts) || parts < 1 || parts > partsMax) {
    throw new MakeModelError('usage', `${parts} files are asked for; this model fits in 1 to ${partsMax}`);
  }
  const paths = partPaths(path, parts);
  const metadata = modelMetadata(shape, `random-${options.preset}-${mixName}`, mix.fileType);
  const files = inRuns(tensors, parts).map((run, part): OutputPlan => {
    let offsetBytes = 0;
    const planned = run.map((tensor) => {
      const entry = { ...tensor, offsetBytes };
      offsetBytes += aligned(tensor.byteLength);
      return entry;
    });
    const split = parts === 1 ? [] : splitMetadata(part, parts, tensors.length);
    const header = encodeHeader([...(part === 0 ? metadata : []), ...split], planned);
    return {
      path: paths[part]!,
      sizeBytes: header.length + offsetBytes,
      pieces: () => piecesOf(header, planned, weights),
    };
  });
  return { files, tensorCount: tensors.length };
}

const PADDING = new Uint8Array(aligned(1));

function* piecesOf(
  header: Buffer,
  tensors: readonly PlannedTensor[],
  weights: WeightMaker,
): Generator<Uint8Array> {
  yield header;
  for (const tensor of tensors) {
    yield* weights.pieces(tensor);
    yield PADDING.subarray(0, aligned(tensor.byteLength) - tensor.byteLength);
  }
}

/** Makes the model at `path`: a GGUF, or with format mlx a folder. Throws MakeModelError and leaves nothing behind then. */
export async function makeModel(options: MakeModelOptions, path: string): Promise<MadeModel> {
  const shape = modelShape(options.preset, options);
  const { files, tensorCount } =
    options.format === 'mlx' ? planMlx(options, shape, path) : planFiles(options, shape, path);
  const totalBytes = await writeOutputs(files, options);
  return { paths: files.map((file) => file.path), totalBytes, tensorCount, shape };
}
