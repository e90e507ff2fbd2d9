/**
 * Where the dense weights go: everything that is not a routed expert is read once and stays.
 *
 * Tensors that lie in touching pages of a file are read as one region, from its first page to its last, and stand in
 * memory as they stand in the file. Nothing is copied or repacked; a tensor begins where its offset within the page
 * says. The cost is less than two pages per region.
 */
import { MoestreamError } from '../errors.ts';
import type { DenseTensor } from '../model/tensor-map.ts';
import type { QueuedRead } from './fetch-queue.ts';
import { formatBytes, PAGE_BYTES, roundDown, roundUp, SEGMENT_BYTES_MAX } from './memory.ts';

/** A dense tensor and its place. */
export interface ResidentTensor extends DenseTensor {
  readonly segment: number;
  readonly segmentBytes: number;
}

export interface ResidentPlan {
  readonly segmentBytes: readonly number[];
  readonly tensors: readonly ResidentTensor[];
  readonly reads: readonly Omit<QueuedRead, 'ticket' | 'claim'>[];
  readonly totalBytes: number;
}

/** Segments are filled up to this; a larger region gets one of its own. */
const SEGMENT_BYTES_WANTED = 1024 ** 3;
/** Large enough for full bandwidth, small enough that 16 readers share the load evenly. */
const READ_BYTES = 4 * 1024 ** 2;

interface Region {
  readonly file: number;
  readonly beginBytes: number;
  endBytes: number;
  readonly tensors: DenseTensor[];
}

function regionsOf(dense: readonly DenseTensor[]): Region[] {
  const sorted = [...dense].sort((a, b) => a.file - b.file || a.offsetBytes - b.offsetBytes);
  const regions: Region[] = [];
  for (const tensor of sorted) {
    const beginBytes = roundDown(tensor.offsetBytes, PAGE_BYTES);
    const endBytes = roundUp(tensor.offsetBytes + tensor.byteLength, PAGE_BYTES);
    const last = regions.at(-1);
    const joined = last !== undefined && last.file === tensor.file && beginBytes <= last.endBytes;
    if (joined && Math.max(endBytes, last.endBytes) - last.beginBytes <= SEGMENT_BYTES_WANTED) {
      last.endBytes = Math.max(last.endBytes, endBytes);
      last.tensors.push(tensor);
    } else {
      regions.push({ file: tensor.file, beginBytes, endBytes, tensors: [tensor] });
    }
  }
  return regions;
}

export function planResidents(dense: readonly DenseTensor[], fileSizeBytes: readonly number[]): ResidentPlan {
  const segmentBytes: number[] = [];
  const tensors: ResidentTensor[] = [];
  const reads: Omit<QueuedRead, 'ticket' | 'claim'>[] = [];
  for (const region of regionsOf(dense)) {
    const length = region.endBytes - region.beginBytes;
    if (length > SEGMENT_BYTES_MAX) {
      const name = region.tensors[0]!.name;
      throw new MoestreamError(
        'MODEL_UNSUPPORTED',
        `tensor ${name} has ${formatBytes(length)}, more than 4 GiB`,
      );
    }
    const last = segmentBytes.length - 1;
    const fits = last >= 0 && segmentBytes[last]! + length <= SEGMENT_BYTES_WANTED;
    const segment = fits ? last : segmentBytes.push(0) - 1;
    const base = segmentBytes[segment]!;
    segmentBytes[segment] = base + length;
    for (const tensor of region.tensors) {
      tensors.push({ ...tensor, segment, segmentBytes: base + tensor.offsetBytes - region.beginBytes });
    }
    for (let at = 0; at < length; at += READ_BYTES) {
      const byteLength = Math.min(READ_BYTES, length - at);
      const offsetBytes = region.beginBytes + at;
      const requiredBytes = Math.min(byteLength, fileSizeBytes[region.file]! - offsetBytes);
      reads.push({
        file: region.file,
        offsetBytes,
        byteLength,
        requiredBytes,
        segment,
        intoBytes: base + at,
      });
    }
  }
  return { segmentBytes, tensors, reads, totalBytes: segmentBytes.reduce((sum, bytes) => sum + bytes, 0) };
}
