/**
 * What became of every prefetch: the ledger that counters and controller are written from.
 *
 * A slot carries a mark from the moment its prefetch is queued until its expert is wanted, evicted or dropped; an expert
 * that a prefetch evicted carries one until somebody reads it again. So every prefetched byte is judged exactly once. A
 * prefetch that was right only did earlier what the demand would have done: then its victim is nobody's loss.
 *
 * The controller hears of hints alone: it must not take the union of a chunk for the merit of a predictor. The union takes
 * slots that nobody keeps, so it has no victims.
 */
import { NONE } from '../pipeline/eviction.ts';
import { type ExpertCounters, newCounters } from './expert-counters.ts';
import type { PrefetchController } from './prefetch-controller.ts';

/** Why an expert is read: its router has chosen it, a predictor has named it, or a chunk will want its whole layer. */
export const READ_DEMAND = 0;
export const READ_HINT = 1;
export const READ_UNION = 2;
export type Purpose = typeof READ_DEMAND | typeof READ_HINT | typeof READ_UNION;

export class PrefetchLedger {
  counters: ExpertCounters = newCounters();
  private readonly controller: PrefetchController;
  /** (slots): the bytes of a prefetch that nobody has wanted yet, else 0. */
  private readonly unproven: Float64Array;
  /** (slots): whether a hint was its reason. */
  private readonly hinted: Uint8Array;
  /** (slots): whom that prefetch evicted, or NONE. */
  private readonly victim: Int32Array;
  /** (layers * experts): 1 for whom a prefetch has evicted. */
  private readonly displaced: Uint8Array;

  constructor(controller: PrefetchController, slots: number, keys: number) {
    this.controller = controller;
    this.unproven = new Float64Array(slots);
    this.hinted = new Uint8Array(slots);
    this.victim = new Int32Array(slots).fill(NONE);
    this.displaced = new Uint8Array(keys);
  }

  isUnproven(slot: number): boolean {
    return this.unproven[slot]! > 0;
  }

  /** A slot was taken for `key`, from `evictedKey`. */
  admitted(slot: number, key: number, evictedKey: number, purpose: Purpose, bytes: number): void {
    const { counters, controller } = this;
    this.waste(slot, this.unproven[slot]!);
    const isDemand = purpose === READ_DEMAND;
    const isHint = purpose === READ_HINT;
    if (isDemand && this.displaced[key] === 1) {
      counters.displacedBytes += bytes;
      controller.harmful(bytes);
    }
    this.displaced[key] = 0;
    if (evictedKey !== NONE) this.displaced[evictedKey] = isHint ? 1 : 0;
    counters.bytesRead += bytes;
    if (isDemand) {
      counters.demandBytesRead += bytes;
      return;
    }
    counters.prefetches++;
    if (isHint) controller.issued(bytes);
    this.hinted[slot] = isHint ? 1 : 0;
    this.unproven[slot] = bytes;
    this.victim[slot] = isHint ? evictedKey : NONE;
  }

  /** The router wants the expert in this slot. `unreadBytes` of it no reader has taken. */
  wanted(slot: number, unreadBytes: number): void {
    const bytes = this.unproven[slot]!;
    if (bytes === 0) return;
    this.unproven[slot] = 0;
    if (this.victim[slot] !== NONE) this.displaced[this.victim[slot]!] = 0;
    this.counters.usefulPrefetchBytes += bytes - unreadBytes;
    this.counters.latePrefetchBytes += unreadBytes;
    this.counters.demandBytesRead += unreadBytes;
    if (this.hinted[slot] === 1) this.controller.useful(bytes - unreadBytes);
  }

  /**
   * Chunks of an unwanted prefetch were taken back: they are not read. The slot comes free, and spares the next admission a
   * victim, so its own is no loss.
   */
  takenBack(slot: number, unreadBytes: number): void {
    this.counters.bytesRead -= unreadBytes;
    if (this.unproven[slot]! > 0 && this.victim[slot] !== NONE) this.displaced[this.victim[slot]!] = 0;
    this.waste(slot, this.unproven[slot]! - unreadBytes);
  }

  /** The prefetch in this slot failed or its expert is gone. */
  lost(slot: number): void {
    this.waste(slot, this.unproven[slot]!);
  }

  /** Demands waited for so many bytes of an unwanted prefetch into this slot. */
  delayed(slot: number, bytes: number): void {
    this.counters.delayedBytes += bytes;
    if (this.hinted[slot] === 1) this.controller.harmful(bytes);
  }

  private waste(slot: number, bytes: number): void {
    if (this.unproven[slot] === 0) return;
    this.unproven[slot] = 0;
    this.counters.wastedPrefetchBytes += bytes;
    if (this.hinted[slot] === 1) this.controller.wasted(bytes);
  }
}
