/**
 * When something was going on: stretches of time that do not overlap, in ascending order.
 *
 * Asked in ascending order too, so that a whole run is walked once, whatever its length.
 */
export interface Stretch {
  readonly beginMillis: number;
  readonly endMillis: number;
}

export class Cover {
  readonly totalMillis: number;
  private readonly stretches: readonly Stretch[];
  private at = 0;

  /** Stretches in any order; those that overlap are joined. */
  constructor(stretches: readonly Stretch[]) {
    const joined: { beginMillis: number; endMillis: number }[] = [];
    for (const { beginMillis, endMillis } of stretches.toSorted((a, b) => a.beginMillis - b.beginMillis)) {
      const last = joined.at(-1);
      if (last !== undefined && beginMillis <= last.endMillis) {
        last.endMillis = Math.max(last.endMillis, endMillis);
      } else {
        joined.push({ beginMillis, endMillis });
      }
    }
    this.stretches = joined;
    this.totalMillis = joined.reduce((sum, each) => sum + each.endMillis - each.beginMillis, 0);
  }

  /** How much of this time is covered. Every call begins where the one before did, or later. */
  overlapMillis(beginMillis: number, endMillis: number): number {
    while (this.at < this.stretches.length && this.stretches[this.at]!.endMillis <= beginMillis) this.at++;
    let overlap = 0;
    for (let index = this.at; index < this.stretches.length; index++) {
      const each = this.stretches[index]!;
      if (each.beginMillis >= endMillis) break;
      overlap += Math.min(endMillis, each.endMillis) - Math.max(beginMillis, each.beginMillis);
    }
    return overlap;
  }
}
