/**
 * How often each expert of each layer was chosen lately, and so in which order a layer's experts matter.
 *
 * A chunk of a prompt halves what was counted before it. Choices of single tokens are added to it. Compute keeps these
 * numbers for itself: one addition per choice, nothing crosses a thread.
 */

export class RoutingCounts {
  private readonly experts: number;
  /** (layers, experts) */
  private readonly counts: Float64Array;

  constructor(layers: number, experts: number) {
    this.experts = experts;
    this.counts = new Float64Array(layers * experts);
  }

  /** What a layer's router chose. `ids` is (rows, top-k). */
  note(layer: number, ids: Int32Array | Uint16Array, idCount: number, rows: number): void {
    const { counts, experts } = this;
    const base = layer * experts;
    if (rows > 1) for (let key = base; key < base + experts; key++) counts[key] = counts[key]! / 2;
    for (let index = 0; index < idCount; index++) {
      const key = base + ids[index]!;
      counts[key] = counts[key]! + 1;
    }
  }

  /** Sorts the first `count` experts of a layer, the most chosen first; of equals the lower, which the file has first. */
  sort(layer: number, experts: Int32Array, count: number): void {
    // Shell's sort: in place, without allocating, and it is done once for a chunk and layer.
    for (let gap = count >> 1; gap > 0; gap = gap >> 1) {
      for (let index = gap; index < count; index++) {
        const expert = experts[index]!;
        let at = index;
        for (; at >= gap && this.comesBefore(layer, expert, experts[at - gap]!); at -= gap) {
          experts[at] = experts[at - gap]!;
        }
        experts[at] = expert;
      }
    }
  }

  private comesBefore(layer: number, one: number, other: number): boolean {
    const base = layer * this.experts;
    const lead = this.counts[base + one]! - this.counts[base + other]!;
    return lead > 0 || (lead === 0 && one < other);
  }
}
