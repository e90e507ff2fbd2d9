/**
 * What a disk is measured with: the experts of a model, or pieces of any large file that are as large as experts.
 *
 * A file that is no model is cut into "experts" of whole pages that follow each other, one layer of them. They go through
 * the same layout as those of a packed model.
 */
import { statSync } from 'node:fs';
import { MoestreamError } from '../errors.ts';
import { openModel } from '../model/model.ts';
import { type LayerSource, SPANS } from '../pipeline/expert-layout.ts';
import { formatBytes, PAGE_BYTES, roundDown } from '../pipeline/memory.ts';
import { layerSource } from '../pipeline/plan.ts';

export interface Workload {
  readonly paths: readonly string[];
  readonly sizeBytes: readonly number[];
  readonly layers: readonly LayerSource[];
  /** Experts per layer, and how many of them one token reads. */
  readonly experts: number;
  readonly expertsPerLayer: number;
  readonly isModel: boolean;
}

export interface WorkloadOptions {
  /** Takes the file as it is, in experts of so many bytes. */
  readonly expertBytes?: number;
  /** Default: what the model was trained with; 10 for a file that is no model. */
  readonly expertsPerLayer?: number;
  readonly notice: (sentence: string) => void;
}

/** An expert of Qwen3.5-397B-A17B in Unsloth's UD-Q3_K_XL. */
const EXPERT_BYTES = 5_439_488;
const EXPERTS_PER_LAYER = 10;
/** With fewer, one layer reads much of what the layer before has read. */
const EXPERTS_MIN_SHARE = 4;

/** All bytes of a workload's experts, without padding. */
export function workloadBytes(workload: Workload): number {
  return workload.layers.reduce((sum, layer) => sum + expertBytesOf(layer) * workload.experts, 0);
}

export function expertBytesOf(layer: LayerSource): number {
  return layer.spans.reduce((sum, span) => sum + span.byteLength, 0);
}

function checkedCount(name: string, value: number, most: number): number {
  if (Number.isInteger(value) && value >= 1 && value <= most) return value;
  throw new MoestreamError('USAGE', `${name} is ${value}, expected an integer from 1 to ${most}`);
}

function fileSize(path: string): number {
  try {
    const found = statSync(path);
    if (found.isFile()) return found.size;
  } catch (cause) {
    throw new MoestreamError('MODEL_NOT_FOUND', `${path} is not there`, { cause });
  }
  throw new MoestreamError('MODEL_NOT_FOUND', `${path} is neither a file nor a packed model`);
}

function ofFile(path: string, options: WorkloadOptions): Workload {
  const sizeBytes = fileSize(path);
  const expertBytes = roundDown(options.expertBytes ?? EXPERT_BYTES, PAGE_BYTES);
  if (expertBytes < SPANS.length * PAGE_BYTES) {
    const least = SPANS.length * PAGE_BYTES;
    throw new MoestreamError('USAGE', `experts of ${options.expertBytes} bytes, expected ${least} at least`);
  }
  const experts = Math.floor(sizeBytes / expertBytes);
  const expertsPerLayer = checkedCount(
    'the number of experts per layer',
    options.expertsPerLayer ?? EXPERTS_PER_LAYER,
    1024,
  );
  if (experts < EXPERTS_MIN_SHARE * expertsPerLayer) {
    throw new MoestreamError(
      'USAGE',
      `${path} has ${formatBytes(sizeBytes)}: too small for layers of ${expertsPerLayer} experts of ${formatBytes(expertBytes)}`,
      { hint: 'Name a larger file, or set a smaller --expert-bytes.' },
    );
  }
  const third = roundDown(expertBytes / SPANS.length, PAGE_BYTES);
  const span = (offsetBytes: number, byteLength: number) => ({
    file: 0,
    offsetBytes,
    strideBytes: expertBytes,
    byteLength,
  });
  const layer: LayerSource = {
    spans: [span(0, third), span(third, third), span(2 * third, expertBytes - 2 * third)],
  };
  return { paths: [path], sizeBytes: [sizeBytes], layers: [layer], experts, expertsPerLayer, isModel: false };
}

/** Opens a model, or any file. Throws USAGE for one that is too small, and what `openModel` throws for a missing one. */
export function openWorkload(path: string, options: WorkloadOptions): Workload {
  if (options.expertBytes !== undefined) return ofFile(path, options);
  try {
    const { files, hyperparameters, tensors } = openModel(path);
    const { experts, expertsPerToken } = hyperparameters;
    return {
      paths: files.map((file) => file.path),
      sizeBytes: files.map((file) => file.sizeBytes),
      layers: tensors.experts.map(layerSource),
      experts,
      expertsPerLayer: checkedCount(
        'the number of experts per layer',
        options.expertsPerLayer ?? expertsPerToken,
        experts,
      ),
      isModel: true,
    };
  } catch (error) {
    const isOther =
      MoestreamError.is(error) && (error.code === 'MODEL_INVALID' || error.code === 'MODEL_UNSUPPORTED');
    if (!isOther) throw error;
    options.notice(`${path} is no model that runs here (${error.message}): taking it as a plain file`);
    return ofFile(path, options);
  }
}
