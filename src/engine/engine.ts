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
import { DEFAULT_SAMPLING, type SamplingParams, validateSampling } from '../workers/sampler.ts';
import { Generation, type GenerationParts } from './generation.ts';
import {
  type EngineSettings,
  type GenerateOptions,
  type OpenOptions,
  type Prompt,
  settingsOf,
} from './options.ts';
import { type ActiveRun, Pipeline, type RunTotals } from './pipeline.ts';
import { feedPrompt } from './prompt-feed.ts';
import { vocabularyTable } from './vocabulary.ts';

export interface LogitsOptions {
  readonly signal?: AbortSignal;
  /** (positions, layers, top-k) int32: filled with the selected experts of every position, most probable first. */
  readonly routing?: Int32Array<SharedArrayBuffer>;
}

export type RowListener = (logits: Float32Array, position: number) => void | Promise<void>;

/** How long the main thread sleeps on a ring before it looks around. */
const LOOK_MILLIS = 1000;

/** Opens a model and starts its pipeline. Throws MoestreamError; nothing is left running when it does. */
export async function open(options: OpenOptions): Promise<Engine> {
  const settings = settingsOf(options);
  const model = openModel(settings.model, {
    ...(settings.expertsPerToken === undefined ? {} : { expertsPerToken: settings.expertsPerToken }),
  });
  return new Engine(model, settings, await Pipeline.start(model, settings));
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
    const { tokenizer } = this.model;
    if (typeof prompt === 'object' && 'ids' in prompt) return [...prompt.ids];
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
    };
    return new Generation(parts, this.pipeline, {
      acquire: async () => {
        this.acquire();
        await this.pipeline.setUpSample(() =>
          vocabularyTable(this.model.tokenizer, this.pipeline.config.vocabulary),
        );
      },
      release: () => {
        this.busy = false;
      },
    });
  }

  /**
   * The logits after every one of the ids: row t is what the model expects behind ids[0..t]. `onRow` is called once per
   * row, in order; the array is (vocabulary) float32 and is overwritten after the call (or its promise) has ended.
   */
  async logits(ids: readonly number[], onRow: RowListener, options: LogitsOptions = {}): Promise<RunTotals> {
    this.roomFor(ids, 0);
    this.acquire();
    const { routing, signal } = options;
    const compute = {
      promptTokens: ids.length,
      logits: 'all' as const,
      decode: false,
      ...(routing === undefined ? {} : { routing }),
    };
    try {
      const active = this.pipeline.begin({ compute, sample: undefined }, signal);
      const feed = feedPrompt(this.pipeline.rings.prompt, ids, active);
      const take = this.takeRows(ids.length, onRow, active);
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

  private async takeRows(count: number, onRow: RowListener, active: ActiveRun): Promise<void> {
    const { rings, logitsBuffer, config } = this.pipeline;
    for (let row = 0; row < count && !active.failed; ) {
      const slot = await rings.logits.peekAsync(LOOK_MILLIS);
      if (slot === EMPTY) continue;
      const first = rings.logits.slotNumber(slot) * config.vocabulary;
      await onRow(logitsBuffer.subarray(first, first + config.vocabulary), row);
      rings.logits.release();
      row++;
    }
  }
}
