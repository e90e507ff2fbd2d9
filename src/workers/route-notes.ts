/**
 * What compute says of the routers' choices: to the predictor, without ever waiting (a predictor that is behind misses
 * something), and to the recorder of a trace, which shall miss nothing.
 */
import type { Backend, BackendConfig } from '../native.ts';
import type { ControlBlock } from '../pipeline/control.ts';
import {
  ROUTE_COUNT,
  ROUTE_IDS,
  ROUTE_LAYER,
  ROUTE_ROWS,
  ROUTE_SEQUENCE,
  STREAM_LAYER,
  STREAM_ROWS,
  STREAM_SEQUENCE,
  STREAM_VALUES,
  TRACE_IDS,
  TRACE_LAYER,
  TRACE_POSITION,
  TRACE_ROWS_LEFT,
} from '../pipeline/messages.ts';
import { EMPTY, type RingHandle, SpscRing, STOPPED, TIMED_OUT } from '../pipeline/ring.ts';
import { STREAM_ROWS_MAX } from './predictors/lookahead.ts';
import { BEAT_MILLIS } from './stage.ts';

export class RouteNotes {
  private readonly routes: SpscRing;
  private readonly streams: SpscRing | undefined;
  private readonly streamFloats: Float32Array | undefined;
  private readonly config: BackendConfig;
  private readonly backend: Backend;
  /** (experts): the step that last saw an expert. */
  private readonly seenIn: Int32Array;
  private sequence = 0;
  /** What the router chose for a row that is told of when more of the layer has been computed. */
  private toldLater: Int32Array | undefined;

  constructor(routes: RingHandle, streams: RingHandle | undefined, config: BackendConfig, backend: Backend) {
    this.routes = new SpscRing(routes);
    this.streams = streams && new SpscRing(streams);
    this.streamFloats = streams && new Float32Array(streams.words.buffer);
    this.config = config;
    this.backend = backend;
    this.seenIn = new Int32Array(config.experts);
  }

  /**
   * After `mix` of a layer. `ids` is (rows, top-k), and stays as it is until `ask`. A single row whose stream is wanted goes
   * out with `ask`: the more of the layer is in it, the better the next routers can be guessed from it, and until then the
   * disk has reads of this layer to do. One message, because each wakes a thread.
   */
  note(layer: number, ids: Int32Array, rowCount: number): void {
    this.toldLater = this.streams !== undefined && rowCount === 1 ? ids : undefined;
    if (this.toldLater === undefined) this.send(layer, ids, rowCount);
  }

  /** When the last reads of the layer are under way. No effect unless `note` has left it to this call. */
  ask(layer: number): void {
    const ids = this.toldLater;
    this.toldLater = undefined;
    if (ids !== undefined) this.send(layer, ids, 1);
  }

  private send(layer: number, ids: Int32Array, rowCount: number): void {
    this.sequence = (this.sequence + 1) | 0;
    const slot = this.routes.tryReserve();
    if (slot === EMPTY) return;
    // The streams first: who sees the route finds them.
    this.noteStreams(layer, rowCount);
    const { words } = this.routes;
    words[slot + ROUTE_SEQUENCE] = this.sequence;
    words[slot + ROUTE_LAYER] = layer;
    words[slot + ROUTE_ROWS] = rowCount;
    words[slot + ROUTE_COUNT] = this.copyUnion(ids, rowCount, words, slot + ROUTE_IDS);
    this.routes.commit();
  }

  private copyUnion(ids: Int32Array, rowCount: number, into: Int32Array, first: number): number {
    const { expertsPerToken } = this.config;
    let count = 0;
    for (let row = rowCount - 1; row >= 0; row--) {
      for (let index = row * expertsPerToken; index < (row + 1) * expertsPerToken; index++) {
        const expert = ids[index]!;
        if (this.seenIn[expert] === this.sequence) continue;
        this.seenIn[expert] = this.sequence;
        into[first + count++] = expert;
      }
    }
    return count;
  }

  /** Rows evenly over the step, the last among them. */
  private noteStreams(layer: number, rowCount: number): void {
    const { streams, streamFloats } = this;
    const slot = streams === undefined ? EMPTY : streams.tryReserve();
    if (streams === undefined || streamFloats === undefined || slot === EMPTY) return;
    const rows = Math.min(rowCount, STREAM_ROWS_MAX);
    for (let index = 0; index < rows; index++) {
      const row = Math.floor(((index + 1) * rowCount) / rows) - 1;
      this.backend.copyStream(row, streamFloats, slot + STREAM_VALUES + index * this.config.hidden);
    }
    streams.words[slot + STREAM_SEQUENCE] = this.sequence;
    streams.words[slot + STREAM_LAYER] = layer;
    streams.words[slot + STREAM_ROWS] = rows;
    streams.commit();
  }
}

/** Records every choice of every row, in the order in which they are made. */
export class RouteTrace {
  private readonly ring: SpscRing;
  private readonly floats: Float32Array;
  private readonly expertsPerToken: number;

  constructor(ring: RingHandle, expertsPerToken: number) {
    this.ring = new SpscRing(ring);
    this.floats = new Float32Array(ring.words.buffer);
    this.expertsPerToken = expertsPerToken;
  }

  /** Waits while the ring is full. False when the pipeline is stopping. */
  note(
    position: number,
    layer: number,
    ids: Int32Array,
    weights: Float32Array,
    rowCount: number,
    control: ControlBlock,
  ): boolean {
    const { ring, floats, expertsPerToken } = this;
    const { words } = ring;
    for (let row = 0; row < rowCount; row++) {
      const slot = this.waitForSlot(control);
      if (slot === STOPPED) return false;
      words[slot + TRACE_POSITION] = position + row;
      words[slot + TRACE_LAYER] = layer;
      words[slot + TRACE_ROWS_LEFT] = rowCount - 1 - row;
      for (let index = 0; index < expertsPerToken; index++) {
        words[slot + TRACE_IDS + index] = ids[row * expertsPerToken + index]!;
        floats[slot + TRACE_IDS + expertsPerToken + index] = weights[row * expertsPerToken + index]!;
      }
      ring.commit();
    }
    return true;
  }

  private waitForSlot(control: ControlBlock): number {
    for (;;) {
      const slot = this.ring.reserve(control, BEAT_MILLIS);
      control.beat('compute');
      if (slot !== TIMED_OUT) return slot;
    }
  }
}
