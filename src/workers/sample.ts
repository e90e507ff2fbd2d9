/**
 * The sample stage: logits in, token and text out, and the decision when to end.
 *
 * It owns everything between a row of logits and a reader's screen: sampling, end-of-turn tokens, the token limit, stop
 * strings. It sends each token's text before it asks compute for the next row, so text is never later than its token;
 * and it asks for no row it does not need, so no expert is read for a token that nobody sees.
 */
import { invariant } from '../errors.ts';
import { ControlBlock } from '../pipeline/control.ts';
import {
  END_OF_TOKENS,
  FINISH_REASONS,
  TEXT_BYTES,
  TEXT_BYTES_MAX,
  TEXT_FINISH,
  TEXT_KIND,
  TEXT_LENGTH,
  TEXT_PART,
  TEXT_TOKEN,
  TEXT_VALUE,
} from '../pipeline/messages.ts';
import { type RingHandle, SpscRing, STOPPED, TIMED_OUT } from '../pipeline/ring.ts';
import { TRACE } from '../pipeline/trace.ts';
import { TOKEN_ENDS, TOKEN_SILENT, type VocabularyTable } from '../pipeline/vocabulary-table.ts';
import { Sampler, type SamplingParams } from './sampler.ts';
import { BEAT_MILLIS, type StageLogic, serveStage, trace } from './stage.ts';
import { TextGate } from './text-gate.ts';

export interface SampleSetup {
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly logits: RingHandle;
  readonly tokens: RingHandle;
  readonly text: RingHandle;
  /** (logits ring slots, vocabulary) */
  readonly logitsBuffer: Float32Array<SharedArrayBuffer>;
  readonly vocabulary: VocabularyTable;
}

export interface SampleRun {
  readonly sampling: SamplingParams;
  readonly stopStrings: readonly string[];
  /** At least 1. */
  readonly maxTokens: number;
  /** Why the generation ends when it has `maxTokens`. */
  readonly limitReason: 'length' | 'context';
  /** The prompt's last tokens, for the repeat penalty. */
  readonly recentTokens: readonly number[];
  /** Tokens that are taken in place of the sampled ones, whatever they mean; the run ends behind the last. */
  readonly replay?: readonly number[];
}

export interface SampleTotals {
  readonly sampledTokens: number;
  readonly sampleMicros: number;
  /** A hash of every token that was drawn and of its logit's bits: two runs of the same work must have the same. */
  readonly drawnHash: number;
}

class SampleStage implements StageLogic<SampleSetup, SampleRun, SampleTotals> {
  private setup!: SampleSetup;
  private control!: ControlBlock;

  setUp(setup: SampleSetup): void {
    this.setup = setup;
    this.control = new ControlBlock(setup.control);
  }

  run(request: SampleRun): SampleTotals {
    return new SampleLoop(this.setup, request, this.control).run();
  }

  close(): void {}
}

class SampleLoop {
  private readonly setup: SampleSetup;
  private readonly request: SampleRun;
  private readonly control: ControlBlock;
  private readonly logits: SpscRing;
  private readonly tokens: SpscRing;
  private readonly text: SpscRing;
  private readonly sampler: Sampler;
  private readonly gate: TextGate;
  private readonly vocabularySize: number;
  private readonly textBytes: Uint8Array;

  constructor(setup: SampleSetup, request: SampleRun, control: ControlBlock) {
    this.setup = setup;
    this.request = request;
    this.control = control;
    this.logits = new SpscRing(setup.logits);
    this.tokens = new SpscRing(setup.tokens);
    this.text = new SpscRing(setup.text);
    this.textBytes = new Uint8Array(this.text.words.buffer);
    this.vocabularySize = setup.vocabulary.flags.length;
    this.sampler = new Sampler(request.sampling, this.vocabularySize);
    for (const token of request.recentTokens) this.sampler.accept(token);
    this.gate = new TextGate(request.stopStrings, longestToken(setup.vocabulary.offsets));
  }

  run(): SampleTotals {
    let sampledTokens = 0;
    let sampleMillis = 0;
    trace.beginLaps();
    const drawnHash = new DrawnHash();
    for (;;) {
      const slot = this.wait(this.logits, 'filled');
      if (slot === STOPPED) break;
      trace.lap(TRACE.waitRow, 0, 0, 0, 0);
      const beganMillis = performance.now();
      const row = this.rowOf(slot);
      const drawn = this.sampler.sample(row);
      drawnHash.add(drawn, row[drawn]!);
      const token = this.request.replay?.[sampledTokens] ?? drawn;
      this.logits.release();
      this.sampler.accept(token);
      sampledTokens++;
      sampleMillis += performance.now() - beganMillis;
      trace.lap(TRACE.sample, 0, token, 0, 0);
      const goesOn = this.deliver(token, sampledTokens);
      trace.lap(TRACE.deliver, 0, token, 0, 0);
      if (!goesOn) break;
    }
    return { sampledTokens, sampleMicros: sampleMillis * 1000, drawnHash: drawnHash.value };
  }

  /** Sends the token's text on and asks for the next row, or ends. False when there is nothing more to do. */
  private deliver(token: number, sampledTokens: number): boolean {
    const { vocabulary } = this.setup;
    const { replay } = this.request;
    // One row of logits more than tokens: the last one is the answer to the last token.
    if (replay !== undefined && sampledTokens > replay.length) return this.finish('length');
    const flags = vocabulary.flags[token]!;
    if (replay === undefined && (flags & TOKEN_ENDS) !== 0) return this.finish('stop');
    const from = vocabulary.offsets[token]!;
    const to = (flags & TOKEN_SILENT) !== 0 ? from : vocabulary.offsets[token + 1]!;
    const free = this.gate.add(vocabulary.bytes, from, to);
    if (!this.send(TEXT_TOKEN, token, free)) return false;
    if (this.gate.stopped) return this.finish('stop');
    if (replay === undefined && sampledTokens >= this.request.maxTokens)
      return this.finish(this.request.limitReason);
    return this.askFor(token);
  }

  private finish(reason: (typeof FINISH_REASONS)[number]): false {
    const left = this.gate.stopped ? 0 : this.gate.end();
    if (this.send(TEXT_FINISH, FINISH_REASONS.indexOf(reason), left)) this.askFor(END_OF_TOKENS);
    return false;
  }

  private askFor(token: number): boolean {
    const slot = this.wait(this.tokens, 'free');
    if (slot === STOPPED) return false;
    this.tokens.words[slot] = token;
    this.tokens.commit();
    return true;
  }

  /** Sends the first `byteCount` bytes of the gate as one message, in as many slots as it takes. */
  private send(kind: number, value: number, byteCount: number): boolean {
    let sent = 0;
    do {
      const length = Math.min(TEXT_BYTES_MAX, byteCount - sent);
      const slot = this.wait(this.text, 'free');
      if (slot === STOPPED) return false;
      const { words } = this.text;
      words[slot + TEXT_KIND] = sent + length === byteCount ? kind : TEXT_PART;
      words[slot + TEXT_VALUE] = value;
      words[slot + TEXT_LENGTH] = length;
      this.textBytes.set(this.gate.bytes.subarray(sent, sent + length), (slot + TEXT_BYTES) * 4);
      this.text.commit();
      sent += length;
    } while (sent < byteCount);
    this.gate.drop(byteCount);
    return true;
  }

  /** Waits as long as it takes: a reader of the text may be slow. Ends only by a stop. */
  private wait(ring: SpscRing, what: 'filled' | 'free'): number {
    for (;;) {
      const slot =
        what === 'filled' ? ring.peek(this.control, BEAT_MILLIS) : ring.reserve(this.control, BEAT_MILLIS);
      this.control.beat('sample');
      if (slot !== TIMED_OUT) return slot;
    }
  }

  private rowOf(slot: number): Float32Array {
    const first = this.logits.slotNumber(slot) * this.vocabularySize;
    invariant(first + this.vocabularySize <= this.setup.logitsBuffer.length, 'a logits slot has its buffer');
    return this.setup.logitsBuffer.subarray(first, first + this.vocabularySize);
  }
}

/** FNV-1a over 32-bit words. */
class DrawnHash {
  private readonly float = new Float32Array(1);
  private readonly bits = new Uint32Array(this.float.buffer);
  private hash = 0x811c9dc5;

  get value(): number {
    return this.hash >>> 0;
  }

  add(token: number, logit: number): void {
    this.float[0] = logit;
    this.hash = Math.imul(this.hash ^ token, 0x01000193);
    this.hash = Math.imul(this.hash ^ this.bits[0]!, 0x01000193);
  }
}

function longestToken(offsets: Uint32Array): number {
  let longest = 0;
  for (let token = 0; token + 1 < offsets.length; token++) {
    longest = Math.max(longest, offsets[token + 1]! - offsets[token]!);
  }
  return longest;
}

serveStage(new SampleStage());
