/** Hints of the predictors: which of them become reads. */
import { NONE } from '../pipeline/eviction.ts';
import type { Slab } from '../pipeline/slab.ts';
import type { ExpertLoads } from './expert-loads.ts';
import type { LayerStep } from './layer-step.ts';
import type { PrefetchController } from './prefetch-controller.ts';
import { type PrefetchLedger, READ_HINT } from './prefetch-ledger.ts';

export interface HintParts {
  readonly slab: Slab;
  readonly layers: number;
  readonly expertsPerToken: number;
}

export class HintedReads {
  private readonly parts: HintParts;
  private readonly step: LayerStep;
  private readonly loads: ExpertLoads;
  private readonly ledger: PrefetchLedger;
  private readonly controller: PrefetchController;
  /** (layers): hints accepted since the layer was last routed, and experts that it wanted then. */
  private readonly acceptedFor: Int32Array;
  private readonly wantedBy: Int32Array;

  constructor(
    parts: HintParts,
    step: LayerStep,
    loads: ExpertLoads,
    ledger: PrefetchLedger,
    controller: PrefetchController,
  ) {
    this.parts = parts;
    this.step = step;
    this.loads = loads;
    this.ledger = ledger;
    this.controller = controller;
    this.acceptedFor = new Int32Array(parts.layers);
    this.wantedBy = new Int32Array(parts.layers);
  }

  /** The step's layer has been routed. */
  routed(): void {
    this.wantedBy[this.step.layer] = this.step.count;
    this.acceptedFor[this.step.layer] = 0;
  }

  /**
   * Starts reading an expert that may be wanted soon, unless it is here, its layer has been routed, none are wanted now, or
   * the controller wants no more for that layer. Hints of a layer come the most likely first. Never waits, and never takes a slot that the
   * current layer could need: twice top-k slots stay free or evictable. The reads begin when the disk has no demand.
   */
  take(layer: number, expert: number, wanted: boolean): void {
    const { slab, expertsPerToken } = this.parts;
    const { counters } = this.ledger;
    counters.hints++;
    if (slab.find(layer, expert) !== NONE) counters.hintsPresent++;
    else if (this.step.isOpen && layer === this.step.layer) counters.hintsStale++;
    else if (!wanted || this.acceptedFor[layer]! >= this.limitNow()) counters.hintsOverLimit++;
    else if (slab.evictable(layer) <= 2 * expertsPerToken || !this.loads.hasRoom(layer, expert, READ_HINT)) {
      counters.hintsNoRoom++;
    } else {
      this.acceptedFor[layer] = this.acceptedFor[layer]! + 1;
      this.loads.issue(layer, expert, READ_HINT);
    }
  }

  /** The limit is for one row: a layer that wanted more experts, for a batch of rows, may prefetch more. */
  private limitNow(): number {
    const rows = Math.max(1, this.wantedBy[this.step.layer]! / this.parts.expertsPerToken);
    return Math.ceil(this.controller.allowed * rows);
  }
}
