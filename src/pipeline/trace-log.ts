/**
 * Recorded events of one thread, in the order in which they ended, on the clock that all threads share.
 *
 * Kept as they travel, 32 bytes each, in pieces of a megabyte that are made as they are needed: a million events are 32
 * MB, where objects would be ten times that.
 */
import { invariant } from '../errors.ts';
import {
  EVENT_A,
  EVENT_B,
  EVENT_BEGIN,
  EVENT_C,
  EVENT_CODE,
  EVENT_END,
  EVENT_WORDS,
  KIND_MASK,
  LAYER_SHIFT,
  type TraceReader,
} from './trace.ts';

const PIECE_SHIFT = 15;
const PIECE_EVENTS = 1 << PIECE_SHIFT;

interface LogPiece {
  readonly words: Int32Array;
  readonly times: Float64Array;
}

export class TraceLog {
  /** Events that are recorded. */
  count = 0;
  private readonly pieces: LogPiece[] = [];

  /** Takes what a thread has written, at most `most` events; returns how many. */
  takeFrom(reader: TraceReader, most: number): number {
    let taken = 0;
    while (taken < most) {
      const at = this.count & (PIECE_EVENTS - 1);
      if (at === 0 && this.pieces.length === this.count >> PIECE_SHIFT) this.grow();
      const piece = this.pieces[this.count >> PIECE_SHIFT]!;
      const count = reader.take(piece.words, piece.times, at, Math.min(most - taken, PIECE_EVENTS - at));
      if (count === 0) break;
      this.count += count;
      taken += count;
    }
    return taken;
  }

  kind(index: number): number {
    return this.word(index, EVENT_CODE) & KIND_MASK;
  }

  layer(index: number): number {
    return this.word(index, EVENT_CODE) >> LAYER_SHIFT;
  }

  a(index: number): number {
    return this.word(index, EVENT_A);
  }

  b(index: number): number {
    return this.word(index, EVENT_B);
  }

  c(index: number): number {
    return this.word(index, EVENT_C);
  }

  beginMillis(index: number): number {
    return this.time(index, EVENT_BEGIN);
  }

  endMillis(index: number): number {
    return this.time(index, EVENT_END);
  }

  private grow(): void {
    const words = new Int32Array(PIECE_EVENTS * EVENT_WORDS);
    this.pieces.push({ words, times: new Float64Array(words.buffer) });
  }

  private word(index: number, word: number): number {
    invariant(index < this.count, 'an event that was recorded');
    return this.pieces[index >> PIECE_SHIFT]!.words[(index & (PIECE_EVENTS - 1)) * EVENT_WORDS + word]!;
  }

  private time(index: number, which: number): number {
    const at = ((index & (PIECE_EVENTS - 1)) * EVENT_WORDS) >> 1;
    return this.pieces[index >> PIECE_SHIFT]!.times[at + which]!;
  }
}

/** What a thread is to the pipeline. */
export type TraceRole = 'main' | 'compute' | 'predict' | 'sample' | 'reader';

export interface TracedThread {
  readonly name: string;
  readonly role: TraceRole;
  readonly log: TraceLog;
  /** Events that were lost because nobody had emptied the thread's ring in time. */
  readonly dropped: number;
}

/** Everything that was recorded. */
export interface RecordedTrace {
  readonly threads: readonly TracedThread[];
  /** What the `counter` events of the main thread count, and how much there can be of it. */
  readonly counters: readonly { readonly name: string; readonly most: number }[];
  /** Events that were taken from the rings and not kept, because there were more than are kept. */
  readonly notKept: number;
}
