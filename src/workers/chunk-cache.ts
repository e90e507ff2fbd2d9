/**
 * What stays in the cache when a chunk of a prompt wants more than the slab holds.
 *
 * Chunks go through the layers in a circle and want nearly every expert each time. The least recently used expert is then
 * just the one that is wanted next, and every policy that looks back reads everything again for every chunk. So a layer
 * keeps its most chosen experts, as many as its share of the slab, and each of the others gives its slot to whoever comes
 * next as soon as it has been computed. With s of all experts kept, the next chunk reads 1 - s of them, in every layer
 * alike; and the answer begins with the experts that the prompt liked best.
 *
 * Steps of one row, and chunks that want no more than is kept, are left to the policy.
 */
import type { Slab } from '../pipeline/slab.ts';
import type { RoutingCounts } from './routing-counts.ts';

export class ChunkCache {
  /** Whether the step's layer streams through the window of the slab. */
  isStreaming = false;
  private readonly counts: RoutingCounts;
  private readonly order: Int32Array;
  /** (experts): whether it stays, in a step that streams. */
  private readonly stays: Uint8Array;

  constructor(counts: RoutingCounts, experts: number) {
    this.counts = counts;
    this.order = new Int32Array(experts);
    this.stays = new Uint8Array(experts);
  }

  /** A layer's router has chosen, and `counts` knows it. */
  begin(layer: number, wanted: Int32Array, wantedCount: number, rows: number, slab: Slab): void {
    const kept = slab.keptExperts(layer);
    this.isStreaming = rows > 1 && wantedCount > kept;
    if (!this.isStreaming) return;
    for (let index = 0; index < wantedCount; index++) this.order[index] = wanted[index]!;
    this.counts.sort(layer, this.order, wantedCount);
    this.stays.fill(0);
    for (let rank = 0; rank < kept; rank++) this.stays[this.order[rank]!] = 1;
  }

  /** Whether an expert of this step is not worth a slot once it has been computed. */
  isSpent(expert: number): boolean {
    return this.isStreaming && this.stays[expert] === 0;
  }
}
