import { describe, expect, it } from 'vitest';
import { FAILURE_ABANDONED, FAILURE_SYSTEM, NO_CLAIM, Tickets } from '../../dist/pipeline/tickets.js';

const failure = { kind: FAILURE_SYSTEM, errno: 5, file: 2, offsetBytes: 123_456_789_012, gotBytes: 0 };

describe('Tickets', () => {
  it('lets each chunk be read once, whoever asks how often', () => {
    const tickets = Tickets.create(2);
    const first = tickets.open(1, 3);
    expect(tickets.unclaimed(1)).toBe(0b111);
    expect([0, 1, 2].map((chunk) => tickets.claim(1, first + chunk))).toEqual([true, true, true]);
    expect([0, 1, 2].map((chunk) => tickets.claim(1, first + chunk))).toEqual([false, false, false]);
    expect(tickets.claim(1, first + 3)).toBe(false);
    expect(tickets.isDone(1)).toBe(false);
    for (let chunk = 0; chunk < 3; chunk++) tickets.completeChunk(1);
    expect([tickets.isDone(1), tickets.hasFailed(1)]).toEqual([true, false]);
  });

  it('drops requests of an earlier use of the slot, through all generations', () => {
    const tickets = Tickets.create(1);
    let before = tickets.open(0, 1);
    tickets.claim(0, before);
    tickets.completeChunk(0);
    for (let use = 0; use < 40_000; use++) {
      const first = tickets.open(0, 1);
      expect(first).not.toBe(before);
      expect(tickets.claim(0, before)).toBe(false);
      expect(tickets.claim(0, first)).toBe(true);
      tickets.completeChunk(0);
      before = first;
    }
  });

  it('cancels what no reader has taken, and waits for what one has', () => {
    const tickets = Tickets.create(1);
    const first = tickets.open(0, 4);
    expect(tickets.claim(0, first + 2)).toBe(true);
    tickets.cancel(0);
    expect([tickets.pending(0), tickets.hasFailed(0)]).toEqual([1, true]);
    expect(tickets.claim(0, first)).toBe(false);
    tickets.completeChunk(0);
    expect(tickets.isDone(0)).toBe(true);
    expect(tickets.failure(0).kind).toBe(FAILURE_ABANDONED);
    // With every chunk taken there is nothing to cancel.
    const next = tickets.open(0, 1);
    tickets.claim(0, next);
    tickets.cancel(0);
    tickets.completeChunk(0);
    expect(tickets.hasFailed(0)).toBe(false);
  });

  it('keeps the first failure, and the place beyond 4 GiB', () => {
    const tickets = Tickets.create(1);
    tickets.openUnclaimed(0, 2);
    expect(tickets.claim(0, NO_CLAIM)).toBe(true);
    tickets.recordFailure(0, failure);
    tickets.recordFailure(0, { ...failure, errno: 9, offsetBytes: 1 });
    expect(tickets.failure(0)).toEqual(failure);
    tickets.completeChunk(0);
    tickets.completeChunk(0);
    tickets.openUnclaimed(0, 1);
    expect(tickets.hasFailed(0)).toBe(false);
  });

  it('refuses to open a ticket that is in use', () => {
    const tickets = Tickets.create(1);
    tickets.open(0, 1);
    expect(() => tickets.open(0, 1)).toThrow(/in use/);
  });
});
