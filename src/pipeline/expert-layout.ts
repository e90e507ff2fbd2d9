/**
 * Where the bytes of an expert are: in the files, and in a slot of the slab.
 *
 * A GGUF keeps gate, up and down of an expert in three tensors that lie apart, each only 32-byte aligned; a packed file
 * keeps them back to back. Matrices that touch are one region. A direct read wants whole pages, so each region is read
 * from the page before its first byte to the page after its last, into a page-aligned place in the slot that has room for
 * it; the weights then start some bytes into that place, which the file offset alone decides. No byte is copied
 * afterwards.
 *
 * `split` cuts an expert into that many chunks for as many readers, on page boundaries, never across regions: every page
 * of every region is in exactly one chunk. There is at least one chunk per region.
 */
import { invariant } from '../errors.ts';
import { PAGE_BYTES, roundDown, roundUp, SLOT_ALIGN_BYTES } from './memory.ts';

/** The three matrices of an expert, in this order everywhere. */
export const SPANS = ['gate', 'up', 'down'] as const;

/** One matrix of all experts of a layer: expert e starts at `offsetBytes + e * strideBytes`. */
export interface SpanSource {
  readonly file: number;
  readonly offsetBytes: number;
  readonly strideBytes: number;
  readonly byteLength: number;
}

export interface LayerSource {
  readonly spans: readonly [SpanSource, SpanSource, SpanSource];
}

/** Chunks of one expert: filled by `chunksOf`, reused for the next. */
export interface ChunkList {
  count: number;
  readonly file: Int32Array;
  readonly offsetBytes: Float64Array;
  readonly byteLength: Float64Array;
  readonly requiredBytes: Float64Array;
  /** Relative to the start of the slot. */
  readonly slotBytes: Float64Array;
}

export const SPLIT_MAX = 16;
/** A ticket has one claim bit per chunk. */
export const CHUNKS_MAX = SPLIT_MAX;

export function emptyChunkList(): ChunkList {
  return {
    count: 0,
    file: new Int32Array(CHUNKS_MAX),
    offsetBytes: new Float64Array(CHUNKS_MAX),
    byteLength: new Float64Array(CHUNKS_MAX),
    requiredBytes: new Float64Array(CHUNKS_MAX),
    slotBytes: new Float64Array(CHUNKS_MAX),
  };
}

/** Touching matrices of a layer, and their place in the slot. */
interface Region extends SpanSource {
  readonly placeBytes: number;
}

interface LayerPlaces {
  readonly regions: readonly Region[];
  /** Per span: its region, and where in the region it begins. */
  readonly regionOf: readonly number[];
  readonly withinBytes: readonly number[];
  readonly slotBytes: number;
  readonly expertBytes: number;
}

function touches(before: SpanSource, after: SpanSource): boolean {
  return (
    before.file === after.file &&
    before.strideBytes === after.strideBytes &&
    before.offsetBytes + before.byteLength === after.offsetBytes
  );
}

function placesOf(layer: LayerSource): LayerPlaces {
  const joined: SpanSource[] = [];
  const regionOf: number[] = [];
  const withinBytes: number[] = [];
  for (const span of layer.spans) {
    const last = joined.at(-1);
    if (last !== undefined && touches(last, span)) {
      withinBytes.push(last.byteLength);
      joined[joined.length - 1] = { ...last, byteLength: last.byteLength + span.byteLength };
    } else {
      withinBytes.push(0);
      joined.push(span);
    }
    regionOf.push(joined.length - 1);
  }
  let placeBytes = 0;
  const regions = joined.map((source) => {
    const region = { ...source, placeBytes };
    placeBytes += roomBytes(source);
    return region;
  });
  return {
    regions,
    regionOf,
    withinBytes,
    slotBytes: roundUp(placeBytes, SLOT_ALIGN_BYTES),
    expertBytes: layer.spans.reduce((sum, span) => sum + span.byteLength, 0),
  };
}

/** Room for a region wherever in a page it begins. None to spare when every expert begins on a page. */
function roomBytes(region: SpanSource): number {
  const aligned = region.offsetBytes % PAGE_BYTES === 0 && region.strideBytes % PAGE_BYTES === 0;
  return roundUp(region.byteLength, PAGE_BYTES) + (aligned ? 0 : PAGE_BYTES);
}

/** The size of a slot that can hold any expert of this layer. */
export function slotBytesOf(layer: LayerSource): number {
  return placesOf(layer).slotBytes;
}

/** How many chunks the experts of this layer are read in. */
export function chunksPerExpert(layer: LayerSource, split: number): number {
  return Math.max(split, placesOf(layer).regions.length);
}

export class ExpertLayout {
  private readonly layers: readonly LayerPlaces[];
  private readonly fileSizeBytes: readonly number[];
  private readonly split: number;
  private readonly pages = new Float64Array(SPANS.length);
  private readonly cuts = new Int32Array(SPANS.length);

  constructor(layers: readonly LayerSource[], fileSizeBytes: readonly number[], split: number) {
    invariant(Number.isInteger(split) && split >= 1 && split <= SPLIT_MAX, `split ${split}`);
    this.layers = layers.map(placesOf);
    this.fileSizeBytes = fileSizeBytes;
    this.split = split;
  }

  /** The bytes of one expert of this layer, without padding. */
  expertBytes(layer: number): number {
    return this.layers[layer]!.expertBytes;
  }

  /** Where a matrix begins in the slot: span 0 gate, 1 up, 2 down. */
  spanSlotBytes(layer: number, expert: number, span: number): number {
    const { regions, regionOf, withinBytes } = this.layers[layer]!;
    const region = regions[regionOf[span]!]!;
    return region.placeBytes + (expertOffset(region, expert) % PAGE_BYTES) + withinBytes[span]!;
  }

  /**
   * Fills `into` with the chunks of an expert, in file order of its regions: gate first, down last. `fineness` asks for so
   * many times more and smaller chunks.
   */
  chunksOf(layer: number, expert: number, into: ChunkList, fineness = 1): void {
    const { regions } = this.layers[layer]!;
    this.allotCuts(regions, expert, Math.min(CHUNKS_MAX, fineness * Math.max(this.split, regions.length)));
    into.count = 0;
    for (let index = 0; index < regions.length; index++) {
      const region = regions[index]!;
      const firstPage = roundDown(expertOffset(region, expert), PAGE_BYTES);
      const pages = this.pages[index]!;
      const cuts = this.cuts[index]!;
      for (let cut = 0; cut < cuts; cut++) {
        const fromPage = Math.floor((pages * cut) / cuts);
        const toPage = Math.floor((pages * (cut + 1)) / cuts);
        const offsetBytes = firstPage + fromPage * PAGE_BYTES;
        const byteLength = (toPage - fromPage) * PAGE_BYTES;
        const at = into.count++;
        into.file[at] = region.file;
        into.offsetBytes[at] = offsetBytes;
        into.byteLength[at] = byteLength;
        into.requiredBytes[at] = Math.min(byteLength, this.fileSizeBytes[region.file]! - offsetBytes);
        into.slotBytes[at] = region.placeBytes + fromPage * PAGE_BYTES;
      }
    }
  }

  /** How many chunks each region gets: one each, then one more to whichever has the largest chunks. */
  private allotCuts(regions: readonly Region[], expert: number, wanted: number): void {
    for (let index = 0; index < regions.length; index++) {
      const region = regions[index]!;
      const begin = expertOffset(region, expert);
      this.pages[index] =
        (roundUp(begin + region.byteLength, PAGE_BYTES) - roundDown(begin, PAGE_BYTES)) / PAGE_BYTES;
      this.cuts[index] = 1;
    }
    for (let total = regions.length; total < wanted; total++) {
      let largest = 0;
      for (let index = 1; index < regions.length; index++) {
        if (this.pages[index]! * this.cuts[largest]! > this.pages[largest]! * this.cuts[index]!)
          largest = index;
      }
      if (this.cuts[largest]! >= this.pages[largest]!) return;
      this.cuts[largest] = this.cuts[largest]! + 1;
    }
  }
}

function expertOffset(source: SpanSource, expert: number): number {
  return source.offsetBytes + expert * source.strideBytes;
}
