/**
 * Reads ahead what a chunk of a prompt will want of its next layer: nearly all of it.
 *
 * While a layer's mixer and router run, nothing is known of what the layer will want, and the disk would be idle, for 28 %
 * of a prompt's time on the 397B shape. But hundreds of rows want nearly every expert of every layer. So when the reads of
 * a layer have all been asked for, those of the next one follow, the most chosen first, in the lane for prefetches: they
 * wait until no demand is left. After the last layer comes the first one for the next chunk, if there is one.
 *
 * It is a property of the chunk and needs no predictor: it is done where the chunk itself has shown that at least half of a
 * layer is wanted, the layer that comes in the chunk before, or else the layer before in this chunk.
 *
 * Its slots come from the window through which a chunk streams (src/pipeline/slab.ts), so it pushes nobody out that is
 * kept, and they stay pinned until their layer has been routed: neither demands nor hints can evict them before.
 */
import { NONE } from '../pipeline/eviction.ts';
import type { Slab } from '../pipeline/slab.ts';
import type { ExpertLoads } from './expert-loads.ts';
import type { LayerStep } from './layer-step.ts';
import { READ_UNION } from './prefetch-ledger.ts';
import type { RoutingCounts } from './routing-counts.ts';

/** A layer of which the chunk wants less is not read ahead: half of what is read may be for nothing. */
const WANTED_SHARE_MIN = 0.5;

export interface UnionParts {
  readonly slab: Slab;
  readonly layers: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  /** Whether the next layer of a chunk is read ahead at all. */
  readonly readsUnion: boolean;
}

export class UnionReads {
  private readonly parts: UnionParts;
  private readonly step: LayerStep;
  private readonly loads: ExpertLoads;
  private readonly counts: RoutingCounts;
  /** (layers): experts that the last chunk wanted of it, 0 before the first. */
  private readonly wantedBy: Int32Array;
  /** The layer that is read ahead, NONE when there is none, and its experts in the order of reading. */
  private layer = NONE;
  private readonly order: Int32Array;
  private orderCount = 0;
  private next = 0;
  /** Slots that are pinned until their layer has been routed. */
  private readonly held: Int32Array;
  private heldCount = 0;

  constructor(parts: UnionParts, slots: number, step: LayerStep, loads: ExpertLoads, counts: RoutingCounts) {
    this.parts = parts;
    this.step = step;
    this.loads = loads;
    this.counts = counts;
    this.wantedBy = new Int32Array(parts.layers);
    this.order = new Int32Array(parts.experts);
    this.held = new Int32Array(slots);
  }

  /** Whether a next layer is read ahead. */
  get isReading(): boolean {
    return this.layer !== NONE;
  }

  /** The step's layer has been routed; `nextLayer` follows for `nextRows` rows, NONE when that is not known. */
  begin(nextLayer: number, nextRows: number): void {
    const { experts, expertsPerToken, readsUnion } = this.parts;
    const { step } = this;
    if (step.rows > 1) this.wantedBy[step.layer] = step.count;
    this.layer = NONE;
    if (!readsUnion || nextLayer === NONE || nextLayer === step.layer) return;
    const before = this.wantedBy[nextLayer]! || step.count;
    const expected = Math.min(before, nextRows * expertsPerToken);
    if (step.rows === 1 || expected < WANTED_SHARE_MIN * experts) return;
    this.layer = nextLayer;
    this.next = 0;
    this.orderCount = expected;
    for (let expert = 0; expert < experts; expert++) this.order[expert] = expert;
    this.counts.sort(nextLayer, this.order, experts);
  }

  /** Asks for what there is room for. Only when nothing of the current layer is left to ask for. */
  fill(): void {
    if (this.layer === NONE || !this.step.allAdmitted) return;
    const { layer } = this;
    const { slab } = this.parts;
    for (; this.next < this.orderCount; this.next++) {
      const expert = this.order[this.next]!;
      if (slab.find(layer, expert) !== NONE) continue;
      if (this.heldCount >= slab.window(layer) || !slab.canAdmit(layer) || !slab.hasWindow(layer)) return;
      if (!this.loads.hasRoom(layer, expert, READ_UNION)) return;
      const slot = this.loads.issue(layer, expert, READ_UNION);
      slab.pin(slot);
      this.held[this.heldCount++] = slot;
    }
  }

  /**
   * Their layer has been routed, and what it wants is pinned for it; what it does not want is spent. The same when another
   * layer has been routed, after a run that ended early.
   */
  release(): void {
    const { slab } = this.parts;
    for (let index = 0; index < this.heldCount; index++) {
      const slot = this.held[index]!;
      slab.unpin(slot, !this.step.wantsOf(slab.layerOf(slot), slab.expertOf(slot)));
    }
    this.heldCount = 0;
  }
}
