/**
 * From logits to a token.
 *
 * The chain and its defaults are llama.cpp's: repeat penalty, top-k, top-p, min-p, temperature, draw. Top-p and min-p
 * look at probabilities before temperature. Temperature 0 takes the largest logit (after the penalty), the lowest id
 * among equals.
 *
 * Allocates nothing after construction. One pass gathers what top-k and min-p can leave, a few dozen of 248,320; these come
 * off a heap one by one until top-k, top-p or min-p says enough. Nothing is ever sorted whole. With the default chain a
 * heap of all logits took ten times as long (docs/findings.md).
 */
import { MoestreamError } from '../errors.ts';
import { Random } from './random.ts';

export interface SamplingParams {
  /** 0 is greedy. */
  readonly temperature: number;
  /** 0 keeps all. */
  readonly topK: number;
  /** 1 keeps all. */
  readonly topP: number;
  /** 0 keeps all. */
  readonly minP: number;
  /** 1 does nothing. */
  readonly repeatPenalty: number;
  /** How many of the last tokens the penalty looks at. */
  readonly repeatLastN: number;
  /** 32 bits. */
  readonly seed: number;
}

export const DEFAULT_SAMPLING: Omit<SamplingParams, 'seed'> = {
  temperature: 0.8,
  topK: 40,
  topP: 0.95,
  minP: 0.05,
  repeatPenalty: 1,
  repeatLastN: 64,
};

const REPEAT_LAST_N_MAX = 65536;
/** Ids that are gathered beside twice the wanted ones before the smallest are let go. */
const GATHER_ROOM = 256;

/** Throws USAGE for the first value out of range. */
export function validateSampling(params: SamplingParams): void {
  const rules: readonly [name: keyof SamplingParams, low: number, high: number, integer: boolean][] = [
    ['temperature', 0, 100, false],
    ['topK', 0, 2 ** 31 - 1, true],
    ['topP', 0, 1, false],
    ['minP', 0, 1, false],
    ['repeatPenalty', 0.01, 100, false],
    ['repeatLastN', 0, REPEAT_LAST_N_MAX, true],
    ['seed', 0, 2 ** 32 - 1, true],
  ];
  for (const [name, low, high, integer] of rules) {
    const value = params[name];
    if (value >= low && value <= high && (!integer || Number.isInteger(value))) continue;
    throw new MoestreamError(
      'USAGE',
      `${name} is ${value}, expected ${integer ? 'an integer' : 'a number'} from ${low} to ${high}`,
    );
  }
}

export class Sampler {
  private readonly params: SamplingParams;
  private readonly random: Random;
  /** (vocabulary): logits after the penalty. */
  private readonly scores: Float32Array;
  /** (gathered): a max-heap of ids by score, below `heapSize`. Taken ids stand behind it, the last taken first. */
  private readonly heap: Int32Array;
  private gathered = 0;
  private heapSize = 0;
  private readonly weights: Float64Array;
  /** The last tokens, a ring. */
  private readonly recent: Int32Array;
  private recentCount = 0;

  constructor(params: SamplingParams, vocabulary: number) {
    validateSampling(params);
    this.params = params;
    this.random = new Random(params.seed);
    this.scores = new Float32Array(vocabulary);
    this.heap = new Int32Array(vocabulary);
    this.weights = new Float64Array(vocabulary);
    this.recent = new Int32Array(Math.max(1, params.repeatLastN));
  }

  /** Notes a token of the prompt or the answer, for the repeat penalty. */
  accept(token: number): void {
    if (this.params.repeatLastN === 0) return;
    this.recent[this.recentCount % this.params.repeatLastN] = token;
    this.recentCount++;
  }

  /** `logits` is (vocabulary). Throws INTERNAL when one is not a number: no answer is better than a wrong one. */
  sample(logits: Float32Array): number {
    const best = this.score(logits);
    if (this.params.temperature === 0) return best;
    const { topK, topP, minP } = this.params;
    const largest = this.scores[best]!;
    const isBounded = topK > 0 && topK < this.scores.length;
    if (!isBounded && topP === 1 && minP === 0) return this.drawOfAll(largest);
    const floor = minP > 0 ? largest + Math.log(minP) : Number.NEGATIVE_INFINITY;
    return this.draw(isBounded ? this.keepOfTopK(topK, largest, floor) : this.keep(largest, floor), largest);
  }

  /** Copies the logits, applies the penalty, and returns the id of the largest. */
  private score(logits: Float32Array): number {
    const { scores } = this;
    scores.set(logits);
    this.penalise(logits);
    let best = 0;
    let sum = 0;
    for (let id = 0; id < scores.length; id++) {
      sum += scores[id]!;
      if (scores[id]! > scores[best]!) best = id;
    }
    if (Number.isNaN(sum) || scores[best] === Number.POSITIVE_INFINITY) {
      throw new MoestreamError('INTERNAL', 'the logits hold a value that is not a number', {
        hint: 'The model file may be damaged; check it against its published checksum.',
      });
    }
    return best;
  }

  private penalise(logits: Float32Array): void {
    const { repeatPenalty, repeatLastN } = this.params;
    if (repeatPenalty === 1) return;
    const count = Math.min(this.recentCount, repeatLastN);
    for (let index = 0; index < count; index++) {
      const token = this.recent[index]!;
      const logit = logits[token]!;
      // From the untouched logit, so that a token seen twice is penalised once.
      this.scores[token] = logit > 0 ? logit / repeatPenalty : logit * repeatPenalty;
    }
  }

  private before(a: number, b: number): boolean {
    const difference = this.scores[a]! - this.scores[b]!;
    return difference > 0 || (difference === 0 && a < b);
  }

  /** The `count` largest, as a heap: whoever is above what is known to be too small, and now and then only the largest. */
  private gatherLargest(count: number): void {
    const { scores, heap } = this;
    const room = Math.min(heap.length, 2 * count + GATHER_ROOM);
    let threshold = Number.NEGATIVE_INFINITY;
    this.gathered = 0;
    for (let id = 0; id < scores.length; id++) {
      // An equal one with a higher id comes behind those that are here.
      if (scores[id]! <= threshold && this.gathered >= count) continue;
      heap[this.gathered++] = id;
      if (this.gathered < room) continue;
      this.heapify();
      for (let taken = 0; taken < count; taken++) this.pop();
      heap.copyWithin(0, room - count, room);
      this.gathered = count;
      threshold = scores[heap[0]!]!;
    }
    this.heapify();
  }

  /** Everything with at least this score, as a heap. */
  private gatherFrom(floor: number): void {
    this.gathered = 0;
    for (let id = 0; id < this.scores.length; id++)
      if (this.scores[id]! >= floor) this.heap[this.gathered++] = id;
    this.heapify();
  }

  private heapify(): void {
    this.heapSize = this.gathered;
    for (let at = (this.heapSize >> 1) - 1; at >= 0; at--) this.siftDown(at);
  }

  private siftDown(from: number): void {
    const { heap } = this;
    const moved = heap[from]!;
    let at = from;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.heapSize) break;
      if (child + 1 < this.heapSize && this.before(heap[child + 1]!, heap[child]!)) child++;
      if (!this.before(heap[child]!, moved)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = moved;
  }

  /** Takes the largest id off the heap; it goes behind the heap's end. */
  private pop(): number {
    const top = this.heap[0]!;
    this.heapSize--;
    this.heap[0] = this.heap[this.heapSize]!;
    this.heap[this.heapSize] = top;
    if (this.heapSize > 0) this.siftDown(0);
    return top;
  }

  /** Applies top-p and min-p to all. Returns how many ids are kept: the last so many of `heap`. */
  private keep(largest: number, floor: number): number {
    const { topP } = this.params;
    const mass = topP < 1 ? this.mass(largest) : Number.POSITIVE_INFINITY;
    const enough = topP * mass;
    // All ids below this weigh less together than what top-p leaves out: none of them would be kept.
    const negligible =
      topP < 1 ? Math.log(((1 - topP) * mass) / this.scores.length) : Number.NEGATIVE_INFINITY;
    this.gatherFrom(Math.max(floor, largest + negligible));
    let sum = 0;
    let kept = 0;
    while (this.heapSize > 0 && (kept === 0 || sum < enough)) {
      sum += Math.exp(this.scores[this.pop()]! - largest);
      kept++;
    }
    return kept;
  }

  /** Top-p is a share of what top-k leaves, so all of that comes off the heap first. */
  private keepOfTopK(topK: number, largest: number, floor: number): number {
    this.gatherLargest(topK);
    let total = 0;
    for (let index = 0; index < topK; index++) {
      this.weights[index] = Math.exp(this.scores[this.pop()]! - largest);
      total += this.weights[index]!;
    }
    const enough = this.params.topP < 1 ? this.params.topP * total : Number.POSITIVE_INFINITY;
    let sum = 0;
    let kept = 0;
    while (kept < topK && (kept === 0 || sum < enough)) {
      if (kept > 0 && this.scores[this.heap[this.gathered - 1 - kept]!]! < floor) break;
      sum += this.weights[kept]!;
      kept++;
    }
    return kept;
  }

  /** The sum of exp(score - largest) over the vocabulary. */
  private mass(largest: number): number {
    let sum = 0;
    for (let id = 0; id < this.scores.length; id++) sum += Math.exp(this.scores[id]! - largest);
    return sum;
  }

  /** Draws among the `kept` largest at the temperature. */
  private draw(kept: number, largest: number): number {
    const { temperature } = this.params;
    const idAt = (index: number): number => this.heap[this.gathered - 1 - index]!;
    let sum = 0;
    for (let index = 0; index < kept; index++) {
      sum += Math.exp((this.scores[idAt(index)]! - largest) / temperature);
      this.weights[index] = sum;
    }
    return idAt(this.indexOf(this.random.next() * sum, kept));
  }

  /** Draws among all ids at the temperature. */
  private drawOfAll(largest: number): number {
    const { temperature } = this.params;
    const count = this.scores.length;
    let sum = 0;
    for (let id = 0; id < count; id++) {
      sum += Math.exp((this.scores[id]! - largest) / temperature);
      this.weights[id] = sum;
    }
    return this.indexOf(this.random.next() * sum, count);
  }

  /** The first of `count` summed weights that is above `target`; the last one if rounding left none. */
  private indexOf(target: number, count: number): number {
    let [low, high] = [0, count - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (target < this.weights[middle]!) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
