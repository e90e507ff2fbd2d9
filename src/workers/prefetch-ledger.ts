/**
 * What became of every prefetch: the ledger that counters and controller are written from.
 *
 * A slot carries a mark from the moment its prefetch is queued until its expert is wanted, evicted or dropped; an expert
 * that a prefetch evicted carries one until somebody reads it again. So every prefetched byte is judged exactly once. A
 * prefetch that was right only did earlier what the demand would have done: then its victim is nobody's loss.
 */
import { NONE } from '../pipeline/eviction.ts';
import { type ExpertCounters, newCounters } from './expert-counters.ts';
import type { PrefetchController } from './prefetch-controller.ts';

export class PrefetchLedger {
  counters: ExpertCounters = newCounters();
  private readonly controller: PrefetchController;
  /** (slots): the bytes of a prefetch that nobody has wanted yet, else 0. */
  private readonly unproven: Float64Array;
  /** (slots): whom that prefetch evicted, or NONE. */
  private readonly victim: Int32Array;
  /** (layers * experts): 1 for whom a prefetch has evicted. */
  private readonly displaced: Uint8Array;

  constructor(controller: PrefetchController, slots: number, keys: number) {
    this.controller = controller;
    this.unproven = new Float64Array(slots);
    this.victim = new Int32Array(slots).fill(NONE);
    this.displaced = new Uint8Array(keys);
  }

  isUnproven(slot: number): boolean {
    return this.unproven[slot]! > 0;
  }

  /** A slot was taken for `key`, from `evictedKey`. */
  admitted(slot: number, key: number, evictedKey: number, forPrefetch: boolean, bytes: number): void {
    const { counters, controller } = this;
    this.waste(slot, this.unproven[slot]!);
    if (!forPrefetch && this.displaced[key] === 1) {
      counters.displacedBytes += bytes;
      controller.harmful(bytes);
    }
    this.displaced[key] = 0;
    if (evictedKey !== NONE) this.displaced[evictedKey] = forPrefetch ? 1 : 0;
    counters.bytesRead += bytes;
    if (!forPrefetch) {
      counters.demandBytesRead += bytes;
      return;
    }
    counters.prefetches++;
    controller.issued(bytes);
    this.unproven[slot] = bytes;
    this.victim[slot] = evictedKey;
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
    this.controller.useful(bytes - unreadBytes);
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

  /** Demands waited for so many bytes of unwanted prefetches. */
  delayed(bytes: number): void {
    this.counters.delayedBytes += bytes;
    this.controller.harmful(bytes);
  }

  private waste(slot: number, bytes: number): void {
    if (this.unproven[slot] === 0) return;
    this.unproven[slot] = 0;
    this.counters.wastedPrefetchBytes += bytes;
    this.controller.wasted(bytes);
  }
}
