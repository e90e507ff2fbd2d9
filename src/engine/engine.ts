/**
 * moestream as a library: open a model, generate, close.
 *
 *     const engine = await open({ model: 'model.gguf' });
 *     for await (const piece of engine.generate('How do I use tar?')) process.stdout.write(piece.text);
 *     await engine.close();
 *
 * One engine holds one model and runs one generation at a time. Everything that the command line does goes through here.
 */
import { randomInt } from 'node:crypto';
import { MoestreamError } from '../errors.ts';
import { type Model, openModel } from '../model/model.ts';
import type { BackendName } from '../native.ts';
import type { MemoryPlan } from '../pipeline/plan.ts';
import { EMPTY } from '../pipeline/ring.ts';
import type { TraceHeader } from '../pipeline/routing-trace.ts';
import type { RecordedTrace } from '../pipeline/trace-log.ts';
import { DEFAULT_SAMPLING, type SamplingParams, validateSampling } from '../workers/sampler.ts';
import type { ActiveRun, RunTotals } from './active-run.ts';
import { identityOf } from './forecaster.ts';
import { type EngineLease, Generation, type GenerationParts } from './generation.ts';
import {
  type EngineSettings,
  type GenerateOptions,
  type OpenOptions,
  type Prompt,
  settingsOf,
} from './options.ts';
import { Pipeline } from './pipeline.ts';
import { feedPrompt, feedTokens } from './prompt-feed.ts';
import { vocabularyTable } from './vocabulary.ts';

export interface LogitsOptions {
  readonly signal?: AbortSignal;
  /** The first position whose logits are wanted. Default 0. */
  readonly from?: number;
  /** Ids from here on are computed one by one, as an answer is; before it in chunks, as a prompt is. Default: none. */
  readonly decodeFrom?: number;
  /** (positions, layers, top-k) int32: filled with the selected experts of every position, most probable first. */
  readonly routing?: Int32Array<SharedArrayBuffer>;
}

export interface ReplayOptions {
  readonly signal?: AbortSignal;
  /** Leading prompt tokens that the statistics leave out. Default 0. */
  readonly depthTokens?: number;
  /** (answer): filled with the time that each token of the answer took. */
  readonly stepMicros?: Float64Array<SharedArrayBuffer>;
}

export type RowListener = (logits: Float32Array, position: number) => void | Promise<void>;

/** How long the main thread sleeps on a ring before it looks around. */
const LOOK_MILLIS = 1000;

/** Opens a model and starts its pipeline. Throws MoestreamError; nothing is left running when it does. */
export async function open(options: OpenOptions): Promise<Engine> {
  const settings = settingsOf(options);
  const model = openModel(settings.model, { ...settings.mix, expertsPerToken: settings.expertsPerToken });
  return new Engine(model, settings, await Pipeline.start(model, settings));
}

function traceHeaderOf(model: Model, promptTokens: number): TraceHeader {
  const { layers, experts, expertsPerToken } = model.hyperparameters;
  return {
    layers,
    experts,
    expertsPerToken,
    promptTokens,
    identity: identityOf(model),
    expertBytes: model.tensors.experts.map(
      ({ gate, up, down }) => gate.byteLength + up.byteLength + down.byteLength,
    ),
  };
}

export class Engine {
  readonly model: Model;
  private readonly pipeline: Pipeline;
  private busy = false;
  private closed = false;

  /** Use `open`. */
  constructor(model: Model, settings: EngineSettings, pipeline: Pipeline) {
    this.model = model;
    this.pipeline = pipeline;
    const trained = model.hyperparameters.trainedExpertsPerToken;
    const used = model.hyperparameters.expertsPerToken;
    if (used < trained) {
      settings.notice(
        `using ${used} experts per token; the model was trained with ${trained}, answers will be worse`,
      );
    }
  }

  /** Where the memory went. */
  get plan(): MemoryPlan {
    return this.pipeline.plan;
  }

  /** What the threads have done so far. Throws ENGINE_STATE unless the engine was opened with `trace`. */
  get trace(): RecordedTrace {
    const recorded = this.pipeline.recordedTrace;
    if (recorded !== undefined) return recorded;
    throw new MoestreamError('ENGINE_STATE', 'nothing was recorded', {
      hint: 'Open the engine with `trace`.',
    });
  }

  /** What reads the experts: threads or io_uring. */
  get readEngine(): string {
    return this.pipeline.readEngine;
  }

  /** Positions that fit. */
  get contextLength(): number {
    return this.pipeline.config.contextLength;
  }

  get vocabularySize(): number {
    return this.pipeline.config.vocabulary;
  }

  /** What computes. */
  get backend(): BackendName {
    return this.pipeline.backend;
  }

  /** Whether files are read past the page cache. */
  get directIo(): boolean {
    return this.pipeline.files.direct;
  }

  /** The token ids that `generate` would start from. */
  promptIds(prompt: Prompt, system?: string): number[] {
    if (typeof prompt === 'object' && 'ids' in prompt) return [...prompt.ids];
    const { tokenizer } = this.model;
    if (typeof prompt === 'object' && 'raw' in prompt)
      return tokenizer.encode(prompt.raw, { parseSpecial: true });
    const messages = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : [...prompt.messages];
    if (system !== undefined) messages.unshift({ role: 'system', content: system });
    return tokenizer.encode(this.model.renderChat(messages), { parseSpecial: true });
  }

  /**
   * Generates an answer, piece by piece. Iterate the returned object once; its `result` says how it ended. Throws
   * CONTEXT_FULL when the prompt does not fit, ABORTED when the signal fires, and whatever the pipeline fails with.
   */
  generate(prompt: Prompt, options: GenerateOptions = {}): Generation {
    const sampling: SamplingParams = {
      temperature: options.temperature ?? this.model.sampling.temperature ?? DEFAULT_SAMPLING.temperature,
      topK: options.topK ?? this.model.sampling.topK ?? DEFAULT_SAMPLING.topK,
      topP: options.topP ?? this.model.sampling.topP ?? DEFAULT_SAMPLING.topP,
      minP: options.minP ?? DEFAULT_SAMPLING.minP,
      repeatPenalty: options.repeatPenalty ?? DEFAULT_SAMPLING.repeatPenalty,
      repeatLastN: options.repeatLastN ?? DEFAULT_SAMPLING.repeatLastN,
      seed: options.seed ?? randomInt(2 ** 32),
    };
    validateSampling(sampling);
    const ids = this.promptIds(prompt, options.system);
    const room = this.roomFor(ids);
    const wanted = options.maxTokens ?? room;
    if (!Number.isInteger(wanted) || wanted < 1) {
      throw new MoestreamError('USAGE', `maxTokens is ${wanted}, expected an integer of at least 1`);
    }
    const parts: GenerationParts = {
      ids,
      sampling,
      stopStrings: options.stop ?? [],
      maxTokens: Math.min(wanted, room),
      limitReason: options.maxTokens !== undefined && options.maxTokens <= room ? 'length' : 'context',
      signal: options.signal,
      trace:
        options.traceRouting === undefined
          ? undefined
          : { path: options.traceRouting, header: traceHeaderOf(this.model, ids.length) },
    };
    return new Generation(parts, this.pipeline, this.lease());
  }

  /**
   * Computes an answer that is known: `answer` is fed token by token in place of what the sampler draws, through every
   * stage that an answer passes. For measuring: the same tokens with any settings.
   */
  replay(prompt: readonly number[], answer: readonly number[], options: ReplayOptions = {}): Generation {
    const { depthTokens = 0, signal, stepMicros } = options;
    this.roomFor([...prompt, ...answer], 0);
    if (!Number.isInteger(depthTokens) || depthTokens < 0 || depthTokens >= prompt.length) {
      throw new MoestreamError(
        'USAGE',
        `depthTokens is ${depthTokens}, expected an integer from 0 to less than the prompt's ${prompt.length}`,
      );
    }
    const parts: GenerationParts = {
      ids: prompt,
      sampling: { ...DEFAULT_SAMPLING, temperature: 0, seed: 0 },
      stopStrings: [],
      maxTokens: answer.length + 1,
      limitReason: 'length',
      signal,
      trace: undefined,
      replay: { answer, depthTokens, stepMicros },
    };
    return new Generation(parts, this.pipeline, this.lease());
  }

  /**
   * The logits after every one of the ids, or those from `from` on: row t is what the model expects behind ids[0..t].
   * `onRow` is called once per row, in order; the array is (vocabulary) float32 and is overwritten after the call (or its
   * promise) has ended.
   */
  async logits(ids: readonly number[], onRow: RowListener, options: LogitsOptions = {}): Promise<RunTotals> {
    this.roomFor(ids, 0);
    const { routing, signal, from = 0, decodeFrom = ids.length } = options;
    for (const [name, value, low] of [
      ['from', from, 0],
      ['decodeFrom', decodeFrom, 1],
    ] as const) {
      if (Number.isInteger(value) && value >= low && value <= ids.length) continue;
      throw new MoestreamError('USAGE', `${name} is ${value}, expected ${low} to ${ids.length}, the ids`);
    }
    this.acquire();
    const compute = {
      promptTokens: decodeFrom,
      depthTokens: 0,
      logitsFrom: from,
      decode: decodeFrom < ids.length,
      ...(routing === undefined ? {} : { routing }),
    };
    try {
      const active = this.pipeline.begin({ compute, sample: undefined }, signal);
      const feed = feedPrompt(this.pipeline.rings.prompt, ids.slice(0, decodeFrom), active).then(() =>
        compute.decode ? feedTokens(this.pipeline.rings.tokens, ids.slice(decodeFrom), active) : undefined,
      );
      const take = this.takeRows(from, ids.length, onRow, active);
      await Promise.all([feed, take]).catch((error: unknown) => active.fail(error));
      return await active.end();
    } finally {
      this.busy = false;
    }
  }

  /** Ends a running generation and every thread, and closes the files. May be called twice. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await this.pipeline.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private lease(): EngineLease {
    return {
      acquire: () => this.acquire(),
      prepare: () =>
        this.pipeline.setUpSample(() =>
          vocabularyTable(this.model.tokenizer, this.pipeline.config.vocabulary),
        ),
      release: () => {
        this.busy = false;
      },
    };
  }

  private acquire(): void {
    if (this.closed) throw new MoestreamError('ENGINE_STATE', 'the engine is closed');
    if (this.busy) {
      throw new MoestreamError('ENGINE_STATE', 'the engine is busy with another generation', {
        hint: 'Wait for it to end, or open a second engine.',
      });
    }
    this.busy = true;
  }

  /** Positions left for an answer. Throws when a prompt is empty, does not fit or holds an id that is none. */
  private roomFor(ids: readonly number[], least = 1): number {
    const { vocabulary } = this.pipeline.config;
    if (ids.length === 0) throw new MoestreamError('USAGE', 'the prompt is empty');
    const wrong = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabulary);
    if (wrong !== undefined) {
      throw new MoestreamError('USAGE', `token id ${wrong} is not in the vocabulary of ${vocabulary}`);
    }
    const room = this.contextLength - ids.length;
    if (room >= least) return room;
    throw new MoestreamError(
      'CONTEXT_FULL',
      `the prompt has ${ids.length} tokens, the context holds ${this.contextLength}`,
      { hint: 'Raise --context, or shorten the prompt.' },
    );
  }

  private async takeRows(from: number, to: number, onRow: RowListener, active: ActiveRun): Promise<void> {
    const { rings, logitsBuffer, config } = this.pipeline;
    for (let row = from; row < to && !active.failed; ) {
      const slot = await rings.logits.peekAsync(LOOK_MILLIS);
      if (slot === EMPTY) continue;
      const first = rings.logits.slotNumber(slot) * config.vocabulary;
      await onRow(logitsBuffer.subarray(first, first + config.vocabulary), row);
      rings.logits.release();
      row++;
    }
  }
}
