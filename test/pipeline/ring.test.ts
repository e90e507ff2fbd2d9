import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ControlBlock } from '../../dist/pipeline/control.js';
import { EMPTY, SpscRing, STOPPED, TIMED_OUT } from '../../dist/pipeline/ring.js';
import { startPeer } from '../support/peer.js';

describe('SpscRing', () => {
  it('behaves as a bounded queue under any sequence of operations', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 4 }).map((power) => 2 ** power),
        fc.array(fc.boolean(), { maxLength: 300 }),
        (slots, operations) => {
          const ring = SpscRing.create(slots, 3);
          const consumer = new SpscRing(ring.handle());
          const model: number[] = [];
          let next = 0;
          for (const push of operations) {
            if (push) {
              const slot = ring.tryReserve();
              expect(slot === EMPTY).toBe(model.length === slots);
              if (slot === EMPTY) continue;
              ring.words[slot + 2] = next;
              ring.commit();
              model.push(next++);
            } else {
              const slot = consumer.tryPeek();
              expect(slot === EMPTY).toBe(model.length === 0);
              if (slot === EMPTY) continue;
              expect(consumer.words[slot + 2]).toBe(model.shift());
              consumer.release();
            }
            expect(ring.filled).toBe(model.length);
          }
        },
      ),
    );
  });

  it('keeps counting when head and tail wrap at 2^32', () => {
    const ring = SpscRing.create(4, 1);
    ring.words[0] = -2;
    ring.words[16] = -2;
    const wrapped = new SpscRing(ring.handle());
    for (let value = 0; value < 10; value++) {
      const slot = wrapped.tryReserve();
      wrapped.words[slot] = value;
      wrapped.commit();
      const seen = wrapped.tryPeek();
      expect(wrapped.words[seen]).toBe(value);
      wrapped.release();
    }
    expect(wrapped.words[0]).toBe(8);
  });

  it('says how many free slots lie behind each other', () => {
    const ring = SpscRing.create(4, 1);
    expect(ring.contiguous(10)).toBe(4);
    for (let index = 0; index < 3; index++) {
      ring.tryReserve();
      ring.commit();
    }
    expect(ring.contiguous(10)).toBe(1);
    ring.tryPeek();
    ring.release();
    expect(ring.contiguous(10)).toBe(1);
    ring.tryReserve();
    ring.commit();
    ring.tryPeek();
    ring.release();
    expect(ring.contiguous(10)).toBe(2);
    expect(ring.contiguous(1)).toBe(1);
  });

  it.each([1, 2, 64])(
    'passes 100,000 messages between two threads through %i slots in order',
    async (slots) => {
      const ring = SpscRing.create(slots, 2);
      const control = new ControlBlock();
      const count = 100_000;
      const peer = await startPeer({ role: 'consume', handle: ring.handle(), control: control.words, count });
      for (let value = 0; value < count; value++) {
        const slot = ring.reserve(control, 10_000);
        expect(slot).toBeGreaterThanOrEqual(0);
        ring.words[slot] = value;
        ring.words[slot + 1] = -value;
        ring.commit();
      }
      expect(await peer.answer).toEqual({ ok: true });
    },
  );

  it('hands messages to a thread that keeps its event loop', async () => {
    const ring = SpscRing.create(2, 1);
    const taken: number[] = [];
    const consumer = (async () => {
      while (taken.length < 50) {
        const slot = await ring.peekAsync(1000);
        if (slot === EMPTY) continue;
        taken.push(ring.words[slot]!);
        ring.release();
      }
    })();
    const producer = new SpscRing(ring.handle());
    for (let value = 0; value < 50; ) {
      const slot = await producer.reserveAsync(1000);
      if (slot === EMPTY) continue;
      producer.words[slot] = value++;
      producer.commit();
    }
    await consumer;
    expect(taken).toEqual(Array.from({ length: 50 }, (_, index) => index));
  });

  it.each([
    ['waitForMessage', false],
    ['waitForSpace', true],
  ])('a stop wakes a thread that is blocked: %s', async (role, full) => {
    const ring = SpscRing.create(1, 1);
    if (full) {
      ring.tryReserve();
      ring.commit();
    }
    const control = new ControlBlock();
    const peer = await startPeer({ role, handle: ring.handle(), control: control.words });
    control.setRunStopped(true);
    ring.interrupt();
    expect(await peer.answer).toMatchObject({ ok: true });
  });

  it('returns STOPPED and TIMED_OUT as what they are', async () => {
    const ring = SpscRing.create(1, 1);
    const control = new ControlBlock();
    expect(ring.peek(control, 1)).toBe(TIMED_OUT);
    control.setRunStopped(true);
    expect(ring.peek(control, 1000)).toBe(STOPPED);
    ring.tryReserve();
    ring.commit();
    // What is there is still handed out: a stop is looked at only before a wait.
    expect(ring.peek(control, 1000)).toBeGreaterThanOrEqual(0);
  });

  it('refuses a size that is not a power of two', () => {
    expect(() => SpscRing.create(3, 1)).toThrow(/power of two/);
  });
});
