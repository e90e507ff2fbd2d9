/**
 * Where the bytes of an expert are: in the files, and in a slot of the slab.
 *
 * A GGUF keeps gate, up and down of an expert in three tensors that lie apart, each only 32-byte aligned. A direct read
 * wants whole pages. So each of the three spans is read from the page before its first byte to the page after its last,
 * into a page-aligned place in the slot that has room for it; the weights then start some bytes into that place, which
 * the file offset alone decides. No byte is copied afterwards.
 *
 * `split` cuts an expert into that many chunks for as many readers, on page boundaries, never across spans: every page
 * of every span is in exactly one chunk. With three spans there are at least three chunks.
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

export function emptyChunkList(): ChunkList {
  const capacity = SPLIT_MAX + SPANS.length;
  return {
    count: 0,
    file: new Int32Array(capacity),
    offsetBytes: new Float64Array(capacity),
    byteLength: new Float64Array(capacity),
    requiredBytes: new Float64Array(capacity),
    slotBytes: new Float64Array(capacity),
  };
}

/** Room for a span of this length wherever in a page it begins. */
function placeBytes(span: SpanSource): number {
  return roundUp(span.byteLength, PAGE_BYTES) + PAGE_BYTES;
}

/** The size of a slot that can hold any expert of this layer. */
export function slotBytesOf(layer: LayerSource): number {
  return roundUp(
    layer.spans.reduce((sum, span) => sum + placeBytes(span), 0),
    SLOT_ALIGN_BYTES,
  );
}

export class ExpertLayout {
  private readonly layers: readonly LayerSource[];
  private readonly fileSizeBytes: readonly number[];
  private readonly split: number;
  private readonly pages = new Float64Array(SPANS.length);
  private readonly cuts = new Int32Array(SPANS.length);

  constructor(layers: readonly LayerSource[], fileSizeBytes: readonly number[], split: number) {
    invariant(Number.isInteger(split) && split >= 1 && split <= SPLIT_MAX, `split ${split}`);
    this.layers = layers;
    this.fileSizeBytes = fileSizeBytes;
    this.split = split;
  }

  /** The bytes of one expert of this layer, without padding. */
  expertBytes(layer: number): number {
    return this.layers[layer]!.spans.reduce((sum, span) => sum + span.byteLength, 0);
  }

  /** Where a matrix begins in the slot: span 0 gate, 1 up, 2 down. */
  spanSlotBytes(layer: number, expert: number, span: number): number {
    const source = this.layers[layer]!.spans[span]!;
    return this.placeStart(layer, span) + (expertOffset(source, expert) % PAGE_BYTES);
  }

  /** Fills `into` with the chunks of an expert, demand order: gate first, down last. */
  chunksOf(layer: number, expert: number, into: ChunkList): void {
    const { spans } = this.layers[layer]!;
    this.allotCuts(spans, expert);
    into.count = 0;
    for (let span = 0; span < SPANS.length; span++) {
      const source = spans[span]!;
      const firstPage = roundDown(expertOffset(source, expert), PAGE_BYTES);
      const pages = this.pages[span]!;
      const cuts = this.cuts[span]!;
      for (let cut = 0; cut < cuts; cut++) {
        const fromPage = Math.floor((pages * cut) / cuts);
        const toPage = Math.floor((pages * (cut + 1)) / cuts);
        const offsetBytes = firstPage + fromPage * PAGE_BYTES;
        const byteLength = (toPage - fromPage) * PAGE_BYTES;
        const at = into.count++;
        into.file[at] = source.file;
        into.offsetBytes[at] = offsetBytes;
        into.byteLength[at] = byteLength;
        into.requiredBytes[at] = Math.min(byteLength, this.fileSizeBytes[source.file]! - offsetBytes);
        into.slotBytes[at] = this.placeStart(layer, span) + fromPage * PAGE_BYTES;
      }
    }
  }

  /** How many chunks each span gets: one each, then one more to whichever has the largest chunks. */
  private allotCuts(spans: LayerSource['spans'], expert: number): void {
    for (let span = 0; span < SPANS.length; span++) {
      const source = spans[span]!;
      const begin = expertOffset(source, expert);
      this.pages[span] =
        (roundUp(begin + source.byteLength, PAGE_BYTES) - roundDown(begin, PAGE_BYTES)) / PAGE_BYTES;
      this.cuts[span] = 1;
    }
    for (let total = SPANS.length; total < this.split; total++) {
      let largest = 0;
      for (let span = 1; span < SPANS.length; span++) {
        if (this.pages[span]! * this.cuts[largest]! > this.pages[largest]! * this.cuts[span]!) largest = span;
      }
      if (this.cuts[largest]! >= this.pages[largest]!) return;
      this.cuts[largest] = this.cuts[largest]! + 1;
    }
  }

  private placeStart(layer: number, span: number): number {
    const { spans } = this.layers[layer]!;
    let start = 0;
    for (let before = 0; before < span; before++) start += placeBytes(spans[before]!);
    return start;
  }
}

function expertOffset(source: SpanSource, expert: number): number {
  return source.offsetBytes + expert * source.strideBytes;
}
