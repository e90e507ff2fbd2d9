/** The experts that one step of a layer wants, each once, in the order in which its rows name them, and how far each is. */
import { NONE } from '../pipeline/eviction.ts';

export class LayerStep {
  /** Counts the steps; 0 before the first. */
  number = 0;
  layer = 0;
  rows = 0;
  count = 0;
  /** Whether the layer is being computed. */
  isOpen = false;
  /** (count): the expert, its slot while it has one that it waits for or in, and whether it has been computed. */
  readonly experts: Int32Array;
  readonly slots: Int32Array;
  readonly done: Uint8Array;
  /** The first that may have no slot yet; `count` when all have been admitted. */
  nextMiss = 0;
  private readonly expertsPerToken: number;
  /** (experts): the step that last wanted it. */
  private readonly seenIn: Int32Array;

  constructor(experts: number, expertsPerToken: number) {
    this.expertsPerToken = expertsPerToken;
    this.experts = new Int32Array(experts);
    this.slots = new Int32Array(experts);
    this.done = new Uint8Array(experts);
    this.seenIn = new Int32Array(experts);
  }

  /** `ids` is (rows, top-k). */
  begin(layer: number, ids: Int32Array, idCount: number): void {
    this.number = (this.number + 1) | 0;
    this.layer = layer;
    this.rows = idCount / this.expertsPerToken;
    this.isOpen = true;
    this.count = 0;
    this.nextMiss = 0;
    for (let index = 0; index < idCount; index++) {
      const expert = ids[index]!;
      if (this.wants(expert)) continue;
      this.seenIn[expert] = this.number;
      this.experts[this.count] = expert;
      this.slots[this.count] = NONE;
      this.done[this.count] = 0;
      this.count++;
    }
  }

  wants(expert: number): boolean {
    return this.seenIn[expert] === this.number;
  }

  wantsOf(layer: number, expert: number): boolean {
    return layer === this.layer && this.wants(expert);
  }

  get allAdmitted(): boolean {
    return this.nextMiss >= this.count;
  }

  get anyMissing(): boolean {
    for (let index = 0; index < this.count; index++) if (this.slots[index] === NONE) return true;
    return false;
  }

  /** Which of them is in this slot, or NONE. */
  indexOfSlot(slot: number): number {
    for (let index = 0; index < this.count; index++) if (this.slots[index] === slot) return index;
    return NONE;
  }

  /** Has lost its slot: it is admitted anew. */
  missAgain(index: number): void {
    this.slots[index] = NONE;
    this.nextMiss = Math.min(this.nextMiss, index);
  }
}
