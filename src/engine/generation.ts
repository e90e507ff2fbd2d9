/**
 * One generation: an async iterable of text pieces, and how it ended.
 *
 * Pieces hold whole characters only: bytes of a character that is not complete wait for the rest. Leaving the loop early
 * ends the generation within one layer; the engine is free again when the loop has ended.
 */
import { invariant, MoestreamError } from '../errors.ts';
import {
  FINISH_REASONS,
  type FinishReason,
  TEXT_BYTES,
  TEXT_FINISH,
  TEXT_KIND,
  TEXT_LENGTH,
  TEXT_PART,
  TEXT_TOKEN,
  TEXT_VALUE,
} from '../pipeline/messages.ts';
import { EMPTY } from '../pipeline/ring.ts';
import type { TraceHeader } from '../pipeline/routing-trace.ts';
import { TRACE } from '../pipeline/trace.ts';
import type { ExpertCounters } from '../workers/expert-counters.ts';
import type { PredictTotals } from '../workers/predict-contract.ts';
import type { ControllerReport } from '../workers/prefetch-controller.ts';
import type { SamplingParams } from '../workers/sampler.ts';
import type { ActiveRun, RunTotals } from './active-run.ts';
import type { Pipeline, PipelineRun } from './pipeline.ts';
import { feedPrompt } from './prompt-feed.ts';
import { RoutingRecorder } from './routing-recorder.ts';

/** A piece of the answer. `text` may be empty: the token's bytes wait for the rest of a character or a stop string. */
export interface Piece {
  readonly text: string;
  /** The token that brought it, or undefined for what was held back until the end. */
  readonly token: number | undefined;
}

export interface GenerationStats {
  readonly promptTokens: number;
  readonly answerTokens: number;
  readonly promptMicros: number;
  readonly decodeMicros: number;
  readonly promptTokensPerSecond: number;
  readonly decodeTokensPerSecond: number;
  readonly bytesRead: number;
  readonly expertLookups: number;
  readonly expertHits: number;
  /** Hits by lookups, 0 to 1. */
  readonly hitRate: number;
  readonly prefetches: number;
  /** Time in which compute waited for reads. */
  readonly waitMicros: number;
  /** Every count of the expert cache and its prefetches. */
  readonly experts: ExpertCounters;
  /** How many hints were read, and why. */
  readonly controller: ControllerReport;
  readonly predictions: PredictTotals;
}

export interface GenerationResult {
  readonly finishReason: FinishReason;
  readonly seed: number;
  readonly stats: GenerationStats;
}

export interface GenerationParts {
  readonly ids: readonly number[];
  readonly sampling: SamplingParams;
  readonly stopStrings: readonly string[];
  readonly maxTokens: number;
  readonly limitReason: 'length' | 'context';
  readonly signal: AbortSignal | undefined;
  /** An answer that is known, and what of its run is measured. */
  readonly replay?: {
    readonly answer: readonly number[];
    readonly depthTokens: number;
    readonly stepMicros: Float64Array<SharedArrayBuffer> | undefined;
  };
  /** Where the routers' choices are recorded, if they are. */
  readonly trace: { readonly path: string; readonly header: TraceHeader } | undefined;
}

/** How a generation takes the engine and gives it back. */
export interface EngineLease {
  /** Throws when the engine is not to be had; then there is nothing to give back. */
  acquire(): void;
  /** What a generation needs of the engine besides a run: the vocabulary. Only while the lease is held. */
  prepare(): Promise<void>;
  release(): void;
}

const LOOK_MILLIS = 1000;

export class Generation implements AsyncIterable<Piece> {
  /** Token ids that the model starts from. */
  readonly promptIds: readonly number[];
  private readonly parts: GenerationParts;
  private readonly pipeline: Pipeline;
  private readonly lease: EngineLease;
  private begun = false;
  private ending: GenerationResult | undefined;
  private runTotals: RunTotals | undefined;

  constructor(parts: GenerationParts, pipeline: Pipeline, lease: EngineLease) {
    this.parts = parts;
    this.pipeline = pipeline;
    this.lease = lease;
    this.promptIds = parts.ids;
  }

  /** How it ended. Only after the loop has ended without an error. */
  get result(): GenerationResult {
    if (this.ending !== undefined) return this.ending;
    throw new MoestreamError(
      'ENGINE_STATE',
      'the generation has no result: it has not ended, or ended with an error',
    );
  }

  /** What every stage did. Only after the loop has ended without an error. */
  get totals(): RunTotals {
    invariant(this.runTotals !== undefined, 'totals are there when a generation has ended');
    return this.runTotals;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void, undefined> {
    if (this.begun) throw new MoestreamError('ENGINE_STATE', 'a generation can be iterated only once');
    this.begun = true;
    this.lease.acquire();
    try {
      await this.lease.prepare();
      yield* this.pieces();
    } finally {
      this.lease.release();
    }
  }

  private async *pieces(): AsyncGenerator<Piece, void, undefined> {
    const { parts, pipeline } = this;
    const recorder = parts.trace && (await RoutingRecorder.create(parts.trace.path, parts.trace.header));
    const active = pipeline.begin(this.request(recorder), parts.signal);
    const recording = recorder?.record().catch((error: unknown) => active.fail(error));
    const feed = feedPrompt(pipeline.rings.prompt, parts.ids, active).catch((error: unknown) =>
      active.fail(error),
    );
    const stream = new TextStream(pipeline);
    let finishReason: FinishReason = 'aborted';
    try {
      while (!active.failed) {
        const message = await stream.next();
        if (message === undefined) continue;
        pipeline.tracer.mark(TRACE.text, 0, message.token ?? -1, 0, 0);
        if (message.token !== undefined || message.text !== '')
          yield { text: message.text, token: message.token };
        if (message.reason === undefined) continue;
        finishReason = message.reason;
        break;
      }
    } finally {
      const ending = finishReason === 'aborted' ? 'interrupted' : 'complete';
      const totals = await this.settle(active, feed, recorder, recording, ending);
      this.runTotals = totals;
      this.ending = { finishReason, seed: parts.sampling.seed, stats: statsOf(totals) };
    }
  }

  /** Waits for everything that belongs to the run. Throws its first failure, also when the trace could not be closed. */
  private async settle(
    active: ActiveRun,
    feed: Promise<unknown>,
    recorder: RoutingRecorder | undefined,
    recording: Promise<void> | undefined,
    ending: 'complete' | 'interrupted',
  ): Promise<RunTotals> {
    const [run] = await Promise.allSettled([active.end(), feed]);
    recorder?.finish();
    await recording;
    const [closed] = await Promise.allSettled([recorder?.close(ending)]);
    if (run.status === 'rejected') throw run.reason;
    if (closed.status === 'rejected') throw closed.reason;
    return run.value;
  }

  private request(recorder: RoutingRecorder | undefined): PipelineRun {
    const { parts } = this;
    const { replay } = parts;
    return {
      compute: {
        promptTokens: parts.ids.length,
        depthTokens: replay?.depthTokens ?? 0,
        logitsFrom: parts.ids.length - 1,
        decode: true,
        ...(replay?.stepMicros === undefined ? {} : { stepMicros: replay.stepMicros }),
      },
      ...(recorder === undefined ? {} : { trace: recorder.ring }),
      sample: {
        ...(replay === undefined ? {} : { replay: replay.answer }),
        sampling: parts.sampling,
        stopStrings: parts.stopStrings,
        maxTokens: parts.maxTokens,
        limitReason: parts.limitReason,
        recentTokens: parts.sampling.repeatLastN === 0 ? [] : parts.ids.slice(-parts.sampling.repeatLastN),
      },
    };
  }
}

interface TextMessage {
  readonly text: string;
  /** Of a token's message. */
  readonly token: number | undefined;
  /** Of the last message. */
  readonly reason: FinishReason | undefined;
}

/** Reads the text ring and puts characters together. */
class TextStream {
  private readonly ring: Pipeline['rings']['text'];
  private readonly bytes: Uint8Array;
  private readonly decoder = new TextDecoder('utf-8');
  private text = '';

  constructor(pipeline: Pipeline) {
    this.ring = pipeline.rings.text;
    this.bytes = new Uint8Array(this.ring.words.buffer);
  }

  /** The next whole message, or undefined when nothing has come within a second or the ring was interrupted. */
  async next(): Promise<TextMessage | undefined> {
    const slot = await this.ring.peekAsync(LOOK_MILLIS);
    if (slot === EMPTY) return undefined;
    const { words } = this.ring;
    const kind = words[slot + TEXT_KIND]!;
    const value = words[slot + TEXT_VALUE]!;
    const from = (slot + TEXT_BYTES) * 4;
    // Decoders refuse shared memory, so the bytes are copied first.
    const bytes = this.bytes.slice(from, from + words[slot + TEXT_LENGTH]!);
    this.ring.release();
    this.text += this.decoder.decode(bytes, { stream: kind !== TEXT_FINISH });
    if (kind === TEXT_PART) return undefined;
    const { text } = this;
    this.text = '';
    if (kind === TEXT_TOKEN) return { text, token: value, reason: undefined };
    const reason = FINISH_REASONS[value];
    invariant(kind === TEXT_FINISH && reason !== undefined, `text message of kind ${kind}`);
    return { text, token: undefined, reason };
  }
}

function perSecond(count: number, micros: number): number {
  return micros > 0 ? (count * 1e6) / micros : 0;
}

function statsOf({ compute, predict, sample }: RunTotals): GenerationStats {
  const { promptTokens, decodedTokens, promptMicros, decodeMicros, controller, ...experts } = compute;
  return {
    promptTokens,
    answerTokens: sample?.sampledTokens ?? 0,
    promptMicros,
    decodeMicros,
    promptTokensPerSecond: perSecond(promptTokens, promptMicros),
    decodeTokensPerSecond: perSecond(decodedTokens, decodeMicros),
    bytesRead: experts.bytesRead,
    expertLookups: experts.lookups,
    expertHits: experts.hits,
    hitRate: experts.lookups > 0 ? experts.hits / experts.lookups : 0,
    prefetches: experts.prefetches,
    waitMicros: experts.waitMicros,
    experts,
    controller,
    predictions: predict,
  };
}
