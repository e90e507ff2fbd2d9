import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ControlBlock } from '../../dist/pipeline/control.js';
import {
  emptyRequest,
  FetchQueue,
  LANE_DEMAND,
  LANE_PREFETCH,
  type QueuedRead,
} from '../../dist/pipeline/fetch-queue.js';
import { startPeer } from '../support/peer.js';

const requestOf = (ticket: number): QueuedRead => ({
  ticket,
  claim: ticket * 3,
  file: ticket % 7,
  offsetBytes: ticket * 5_000_000_000,
  byteLength: ticket * 4096,
  requiredBytes: ticket * 4096 - 1,
  segment: ticket % 5,
  intoBytes: (ticket * 16384) % 2 ** 32,
});

describe('FetchQueue', () => {
  it('is two bounded queues, demand first, under any sequence of operations', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 4 }).map((power) => 2 ** power),
        fc.array(fc.constantFrom('demand', 'prefetch', 'pop'), { maxLength: 300 }),
        (slots, operations) => {
          const queue = FetchQueue.create(slots, 4);
          const lanes: [number[], number[]] = [[], []];
          const request = emptyRequest();
          let next = 1;
          for (const operation of operations) {
            if (operation === 'pop') {
              const expected = lanes[0].shift() ?? lanes[1].shift();
              expect(queue.tryPop(request)).toBe(expected !== undefined);
              if (expected === undefined) continue;
              expect(request).toMatchObject(requestOf(expected));
              queue.finish(request);
              continue;
            }
            const lane = operation === 'demand' ? LANE_DEMAND : LANE_PREFETCH;
            expect(queue.tryPush(lane, requestOf(next))).toBe(lanes[lane]!.length < slots);
            if (lanes[lane]!.length < slots) lanes[lane]!.push(next++);
            expect(queue.waiting(lane)).toBe(lanes[lane]!.length);
          }
        },
      ),
    );
  });

  it.each([1, 4, 16])('gives every request to exactly one of %i readers', async (readers) => {
    const queue = FetchQueue.create(8, 64);
    const control = new ControlBlock();
    const data = { role: 'fetch', handle: queue.handle(), control: control.words };
    const peers = await Promise.all(Array.from({ length: readers }, () => startPeer(data)));
    const count = 20_000;
    for (let ticket = 1; ticket <= count; ticket++) {
      expect(queue.push(ticket % 2, requestOf(ticket), control, 10_000)).toBe(true);
    }
    while (queue.waiting(LANE_DEMAND) + queue.waiting(LANE_PREFETCH) > 0) await new Promise(setImmediate);
    control.shutDown();
    queue.interrupt();
    const answers = await Promise.all(peers.map((peer) => peer.answer));
    const tickets = answers.flatMap((answer) => answer.tickets!).sort((a, b) => a - b);
    expect(tickets).toEqual(Array.from({ length: count }, (_, index) => index + 1));
  });

  it('lets no more reads be under way than there are permits', () => {
    const queue = FetchQueue.create(8, 2);
    const request = emptyRequest();
    for (let ticket = 1; ticket <= 4; ticket++) queue.tryPush(LANE_DEMAND, requestOf(ticket));
    expect([queue.tryPop(request), queue.tryPop(request), queue.tryPop(request)]).toEqual([
      true,
      true,
      false,
    ]);
    queue.finish(request);
    expect(queue.tryPop(request)).toBe(true);
    expect(request.ticket).toBe(3);
  });

  it('signals a reader that waits in native code, once', () => {
    const signalled: number[] = [];
    const queue = FetchQueue.create(8, 2, 77, (fd) => signalled.push(fd));
    queue.tryPush(LANE_DEMAND, requestOf(1));
    expect(signalled).toEqual([]);
    queue.enterNative();
    queue.tryPush(LANE_DEMAND, requestOf(2));
    queue.tryPush(LANE_DEMAND, requestOf(3));
    expect(signalled).toEqual([77]);
    queue.enterNative();
    queue.leaveNative();
    queue.interrupt();
    expect(signalled).toEqual([77]);
  });

  it('wakes nobody for a prefetch that must wait for a demand', () => {
    const signalled: number[] = [];
    const queue = FetchQueue.create(8, 2, 77, (fd) => signalled.push(fd));
    const request = emptyRequest();
    queue.tryPush(LANE_DEMAND, requestOf(1));
    expect(queue.tryPop(request)).toBe(true);
    queue.enterNative();
    queue.tryPush(LANE_PREFETCH, requestOf(2));
    expect(signalled).toEqual([]);
    queue.finish(request);
    queue.tryPush(LANE_PREFETCH, requestOf(3));
    expect(signalled).toEqual([77]);
  });

  it('a producer on a full lane gives up at its bound and when the pipeline stops', () => {
    const queue = FetchQueue.create(2, 64);
    const control = new ControlBlock();
    expect(queue.push(LANE_DEMAND, requestOf(1), control, 10)).toBe(true);
    expect(queue.push(LANE_DEMAND, requestOf(2), control, 10)).toBe(true);
    expect(queue.push(LANE_DEMAND, requestOf(3), control, 10)).toBe(false);
    control.setRunStopped(true);
    expect(queue.push(LANE_DEMAND, requestOf(3), control, 60_000)).toBe(false);
  });

  it('a shutdown wakes readers that wait', async () => {
    const queue = FetchQueue.create(2, 64);
    const control = new ControlBlock();
    const peer = await startPeer({ role: 'fetch', handle: queue.handle(), control: control.words });
    control.shutDown();
    queue.interrupt();
    expect(await peer.answer).toEqual({ tickets: [] });
  });
});
