/**
 * The most hits that any cache of this size could have had: Belady's rule, which knows the future. What is wanted last is
 * given up first, and an expert that comes later than all in the cache is not kept at all. Prefetching can do better, since
 * it does not wait for a miss.
 */
import type { RoutingTrace } from '../pipeline/routing-trace.ts';
import type { SlabShape } from '../pipeline/slab.ts';
import { WantedExperts } from './wanted.ts';

const NEVER = Number.MAX_SAFE_INTEGER;

/** The largest next use first; entries that are out of date are skipped when they come up. */
class FarthestFirst {
  private readonly uses: number[] = [];
  private readonly keys: number[] = [];

  push(use: number, key: number): void {
    let at = this.uses.length;
    this.uses.push(use);
    this.keys.push(key);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (this.uses[parent]! >= use) break;
      this.move(parent, at);
      at = parent;
    }
    this.uses[at] = use;
    this.keys[at] = key;
  }

  get farthestUse(): number {
    return this.uses[0]!;
  }

  pop(): number {
    const key = this.keys[0]!;
    const use = this.uses.pop()!;
    const last = this.keys.pop()!;
    const count = this.uses.length;
    let at = 0;
    while (2 * at + 1 < count) {
      let child = 2 * at + 1;
      if (child + 1 < count && this.uses[child + 1]! > this.uses[child]!) child++;
      if (this.uses[child]! <= use) break;
      this.move(child, at);
      at = child;
    }
    if (count > 0) {
      this.uses[at] = use;
      this.keys[at] = last;
    }
    return key;
  }

  private move(from: number, to: number): void {
    this.uses[to] = this.uses[from]!;
    this.keys[to] = this.keys[from]!;
  }
}

/** Keys in the order in which they are wanted; key = layer * experts + expert. */
function accessesOf(trace: RoutingTrace): { keys: Int32Array; answerFrom: number } {
  const wanted = new WantedExperts(trace);
  let total = 0;
  for (let step = 0; step < trace.steps; step++) {
    wanted.read(step);
    total += wanted.count;
  }
  const keys = new Int32Array(total);
  let at = 0;
  let answerFrom = -1;
  const answers = new AnswerSteps(trace);
  for (let step = 0; step < trace.steps; step++) {
    if (answers.isAnswer(step) && answerFrom < 0) answerFrom = at;
    wanted.read(step);
    const first = trace.stepLayer[step]! * trace.header.experts;
    for (let index = 0; index < wanted.count; index++) keys[at++] = first + wanted.experts[index]!;
  }
  return { keys, answerFrom: answerFrom < 0 ? total : answerFrom };
}

/** Which steps belong to the answer: those behind the prompt's rows. */
export class AnswerSteps {
  private readonly firstAnswer: number;

  constructor({ header, steps, stepLayer, stepRows }: RoutingTrace) {
    let promptRows = 0;
    let step = 0;
    for (; step < steps && promptRows < header.promptTokens; step++) {
      if (stepLayer[step] === header.layers - 1) promptRows += stepRows[step]!;
    }
    this.firstAnswer = step;
  }

  isAnswer(step: number): boolean {
    return step >= this.firstAnswer;
  }
}

export interface BeladyResult {
  readonly lookups: number;
  readonly hits: number;
  readonly answerLookups: number;
  readonly answerHits: number;
}

export function belady(trace: RoutingTrace, shape: SlabShape): BeladyResult {
  const { keys, answerFrom } = accessesOf(trace);
  const nextUse = new Float64Array(keys.length);
  const lastSeen = new Float64Array(shape.layers * shape.experts).fill(NEVER);
  for (let at = keys.length - 1; at >= 0; at--) {
    nextUse[at] = lastSeen[keys[at]!]!;
    lastSeen[keys[at]!] = at;
  }
  /** (keys): the next use of whom the cache holds, else -1. */
  const held = new Float64Array(shape.layers * shape.experts).fill(-1);
  const heaps = shape.classes.map(() => new FarthestFirst());
  const free = shape.classes.map(({ slots }) => slots);
  const result = { lookups: keys.length, hits: 0, answerLookups: keys.length - answerFrom, answerHits: 0 };
  for (let at = 0; at < keys.length; at++) {
    const key = keys[at]!;
    const sizeClass = shape.classOfLayer[Math.floor(key / shape.experts)]!;
    const heap = heaps[sizeClass]!;
    const use = nextUse[at]!;
    if (held[key]! >= 0) {
      result.hits++;
      if (at >= answerFrom) result.answerHits++;
    } else if (free[sizeClass]! > 0) {
      free[sizeClass] = free[sizeClass]! - 1;
    } else {
      // Entries of the past are smaller than every use to come, so the top is never out of date.
      if (heap.farthestUse <= use) continue;
      held[heap.pop()] = -1;
    }
    held[key] = use;
    heap.push(use, key);
  }
  return result;
}
